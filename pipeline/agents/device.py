"""Where and in which precision a network runs.

Labels, gates and scores are float32 with TF32 off: bfloat16 labels would cost 0.4 nat at tau = 0.01. Training on a CPU
with AVX512-bf16 or on a GPU uses bfloat16 autocast, which is faster.
"""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Compute:
    """A device and the precision of the multiplications on it."""

    device: torch.device
    precision: Precision

    def autocast(self) -> AbstractContextManager[object]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU when there is one. ValueError names what this machine has."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: choose auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}: choose auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} asks for a GPU that this machine does not have: use --device cpu or auto")
    return device


def exact(device: torch.device) -> Compute:
    """float32 without TF32: for labels and scores."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return Compute(device, "float32")


def keep_freed_memory() -> None:
    """Let glibc keep what torch frees, for the next update: it hands large buffers back to the kernel, which must clear them
    anew. Updates are a tenth faster for it. Elsewhere than on glibc, nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)
