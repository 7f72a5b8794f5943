"""One root seed -> named, independent random streams.

Two kinds of randomness, both pure functions of what names them:

- `stream(seed, "distill", "batches", epoch)`: an ordinary generator. Adding a name never shifts another stream.
- `uniform(key_B, step_B, lane)`: one number per (episode, step), computed and not drawn. Exploration uses it, so
  whether step t of episode i was random does not depend on the slot, the batch width or the worker that played it,
  and a verifier can recompute it years later.

Dimensions: B batch (slots of a vector environment).
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

EPISODE_SEEDS: Final = {
    "collect": 0,
    "evaluate": 100_000_000,
    "select": 200_000_000,
    "gate": 300_000_000,
    "train": 400_000_000,
    "follow": 500_000_000,
}
"""First environment seed of each purpose: data, scores, model selection, training and curves' scores never share an episode.

Each purpose owns 100 million seeds, in blocks of one million per root seed."""

SEEDS_PER_ROOT: Final = 1_000_000


def episode_seeds(purpose: str, root: int) -> int:
    """The first of the million environment seeds that `purpose` owns under root seed `root` (0 to 99)."""
    if not 0 <= root < 100:
        raise ValueError(f"seed {root} is out of range: choose 0 to 99, so that purposes never share an episode")
    return EPISODE_SEEDS[purpose] + root * SEEDS_PER_ROOT


def _words(names: tuple[str | int, ...]) -> list[int]:
    digest = hashlib.sha256("\x1f".join(f"{type(n).__name__}:{n}" for n in names).encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]


def stream(root: int, *names: str | int) -> np.random.Generator:
    """An independent generator for this name under this root seed."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([root, *_words(names)])))


def integer(root: int, *names: str | int) -> int:
    """A 63-bit seed for libraries that want one (torch.Generator)."""
    return int(stream(root, *names).integers(0, 2**63 - 1))


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(key_B: npt.NDArray[np.int64], step_B: npt.NDArray[np.int64], lane: int) -> npt.NDArray[np.float64]:
    """U[0, 1) for each (episode key, step, lane); lanes are independent draws of the same step."""
    gamma = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        z = _mix((key_B.astype(np.uint64) + np.uint64(1)) * gamma)
        z = _mix(z + (step_B.astype(np.uint64) + np.uint64(1)) * gamma)
        z = _mix(z + np.uint64(lane + 1) * gamma)
    return np.asarray((z >> np.uint64(11)).astype(np.float64) * 2.0**-53)
