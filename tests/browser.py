"""Pages opened in a real browser."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image


def look(page: Path, folder: Path) -> npt.NDArray[np.uint8]:
    """What headless Chromium shows of a page, (1200, 1200, 3). AssertionError if anything on it failed or was fetched."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    picture = folder / "seen.png"
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1200"),
            *("--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", f"--screenshot={picture}"),
            page.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    with Image.open(picture) as seen:
        return np.asarray(seen.convert("RGB"), dtype=np.uint8)
