"""How much a Zstandard frame may decode to, told from its block headers: of zeros, 46 kB make a gigabyte and a half.

Neither decoder that Zarr may use stops at the size that a chunk should have, so a stranger's chunks are looked at first.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final

import numpy as np
from zarr.codecs import ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.registry import register_codec

LARGEST_CHUNK: Final = 1 << 26
"""Bytes that a chunk may decode to; ours decode to 9 MB at most."""
_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_LARGEST_BLOCK: Final = 1 << 17
_NOWHERE: Final = (1 << 64) - 1


def check_frame(data: memoryview) -> None:
    """ValueError unless these bytes are one Zstandard frame (RFC 8878) that decodes to no more than a chunk may."""
    descriptor = data[4] if len(data) > 4 else 0
    single, size_flag = bool(descriptor & 0x20), descriptor >> 6
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    size_bytes = (int(single), 2, 4, 8)[size_flag]
    told = int.from_bytes(data[at : at + size_bytes], "little")
    at += size_bytes
    most, last = 0, False
    while not last and at + 3 <= len(data):
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        most += _LARGEST_BLOCK if kind == 2 else size  # compressed, or as it is, or one byte so many times
        at += 3 + (1 if kind == 1 else size)
    if data[:4].tobytes() != _MAGIC or not last or at + (4 if descriptor & 4 else 0) != len(data):
        raise ValueError("a chunk is not one Zstandard frame")
    if max(most, told) > LARGEST_CHUNK:
        raise ValueError(f"a chunk may decode to {max(most, told):,} bytes, {LARGEST_CHUNK:,} are the most")


def check_shard(path: Path, chunks: int, first: int, last: int) -> None:
    """`check_frame` of chunks `first` up to `last` of a shard file of `chunks`. ValueError, or OSError if it cannot be read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
        index = len(data) - 16 * chunks - 4  # offset and length of each chunk, and a checksum
        if index < 0:
            raise ValueError(f"{path.name} is shorter than its index")
        for offset, length in np.frombuffer(bytes(data[index:-4]), dtype="<u8").reshape(chunks, 2)[first:last].tolist():
            if offset != _NOWHERE:
                with data[offset : offset + length] as frame:
                    check_frame(frame)


class BoundedZstd(ZstdCodec):
    """Zarr's codec, for what is read elsewhere: it decodes what `check_frame` lets pass."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        check_frame(memoryview(chunk_bytes.to_bytes()))
        return super()._decode_sync(chunk_bytes, chunk_spec)


CODEC: Final = "pipeline.datasets.zstandard.BoundedZstd"
register_codec("zstd", BoundedZstd, qualname=CODEC)
