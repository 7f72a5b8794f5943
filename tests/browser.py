"""Pages opened in a real browser."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image


def look(page: Path, folder: Path, width: int = 1200) -> npt.NDArray[np.uint8]:
    """What headless Chromium shows of a page, (1200, width, 3). AssertionError if anything on it failed or was fetched."""
    picture = folder / "seen.png"
    _chromium(page, folder, f"--window-size={width},1200", f"--screenshot={picture}")
    with Image.open(picture) as seen:
        return np.asarray(seen.convert("RGB"), dtype=np.uint8)


def ask(page: Path, folder: Path, script: str, width: int = 1200) -> Any:
    """What a JavaScript function body, which may await, returns when it runs on the loaded page."""
    copy = folder / "asked.html"
    told = f"document.documentElement.dataset.told = JSON.stringify(await (async () => {{ {script} }})())"
    copy.write_text(f"{page.read_text()}<script>addEventListener('load', async () => {{ {told} }})</script>")
    seen = _chromium(copy, folder, f"--window-size={width},1200", "--virtual-time-budget=20000", "--dump-dom")
    found = re.search(r'<html[^>]* data-told="([^"]*)"', seen)
    assert found, "the page never finished loading"
    return json.loads(html.unescape(found[1]))


def _chromium(page: Path, folder: Path, *options: str) -> str:
    """Its output. AssertionError if it failed or the page wrote to the console."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"),
            *(f"--user-data-dir={folder / 'profile'}", *options, page.resolve().as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout
