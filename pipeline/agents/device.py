"""Where and in which precision a network runs.

Labels, gates and scores are float32 with TF32 off: bfloat16 labels would cost 0.4 nat at tau = 0.01. Learning on a GPU, or
on a CPU with instructions for it, uses bfloat16 autocast, which is faster; on any other CPU it would be many times slower.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Compute:
    """A device and the precision of the multiplications on it: float32 is without TF32."""

    device: torch.device
    precision: Precision

    def __post_init__(self) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False

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


def name_of(device: torch.device) -> str:
    """What a card says of where something was made: `cpu`, or the name of the GPU, which does not give the same bytes twice."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def exact(device: torch.device) -> Compute:
    """float32: for labels and scores."""
    return Compute(device, "float32")


def learning(device: torch.device, precision: Precision) -> Compute:
    """For learning, in `precision`; in float32 where that is bfloat16 and the CPU could only emulate it."""
    emulated = precision == "bfloat16" and device.type == "cpu" and not _multiplies_bfloat16()
    return Compute(device, "float32" if emulated else precision)


def _multiplies_bfloat16() -> bool:
    """Whether the CPU's kernels compute in bfloat16: from AVX512 on."""
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


def has_matrix_units() -> bool:
    """Whether the CPU multiplies bfloat16 matrices by units of their own (AMX), many times as fast as float32 ones."""
    supported: bool = torch.cpu._is_amx_tile_supported()
    return supported


WARMUP: Final = 3
"""Calls before a function is recorded: what is made at the first (an optimiser's state) is no part of the recording."""


class Recorded:
    """Calls `function(name, *tensors)`. On a GPU its kernels are recorded once for each name, as a CUDA graph, and from then on
    launched together: an update has hundreds, and to launch them one by one takes longer than they run.

    The function returns one tensor, reads nothing back to the CPU, and works on the same other tensors every time. It is
    recorded on a stream of its own, whose scratch memory (cuBLAS's) no other recording spoils.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._calls: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]] = {}

    def __call__(self, function: Callable[..., Tensor], name: Hashable, *tensors: Tensor) -> Tensor:
        if self._stream is None:
            return function(name, *tensors)
        self._calls[name] += 1
        if self._calls[name] <= WARMUP:
            return self._beside(self._stream, function, name, *tensors)
        if name not in self._recordings:
            self._recordings[name] = self._record(self._stream, function, name, *tensors)
        graph, places, result = self._recordings[name]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        graph.replay()
        return result.clone()

    @staticmethod
    def _beside(stream: torch.cuda.Stream, function: Callable[..., Tensor], name: Hashable, *tensors: Tensor) -> Tensor:
        """The function's result, computed on the stream, as torch wants it before a recording."""
        current = torch.cuda.current_stream(stream.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            result = function(name, *tensors)
        current.wait_stream(stream)
        return result

    @staticmethod
    def _record(
        stream: torch.cuda.Stream, function: Callable[..., Tensor], name: Hashable, *tensors: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]:
        """The graph, where its arguments are put, and where its result will be. Nothing is computed yet."""
        graph, places = torch.cuda.CUDAGraph(), tuple(tensor.clone() for tensor in tensors)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = function(name, *places)
        return graph, places, result


def prepare_to_learn() -> None:
    """How a process that learns computes: it keeps the memory that it frees, and numbers below 1e-38 are zero.

    An optimiser's averages fall to there wherever a unit no longer answers to any state, and a CPU takes a hundred times as
    long to multiply them: half the time of a DQN that has learned for a while. To be called before the first large operation,
    as kernels' threads inherit this from the one that starts them.
    """
    keep_freed_memory()
    torch.set_flush_denormal(True)


def keep_freed_memory() -> None:
    """Let glibc keep what torch and numpy free, for the next batch: it hands large buffers back to the kernel, which must clear
    them anew. Updates are a tenth faster for it, a Dask worker's states a fifth. Elsewhere than on glibc, nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrix kernels in here run on one thread, whose last bits are the same on every number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def take_one_core() -> None:
    """How a Dask worker computes: on one core, as its neighbours do, and keeping what it frees, which Dask asks glibc to hand
    back at once (MALLOC_TRIM_THRESHOLD_).
    """
    torch.set_num_threads(1)
    keep_freed_memory()
