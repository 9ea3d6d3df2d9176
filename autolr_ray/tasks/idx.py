"""IDX, the byte format of the MNIST family: read it, write it with the same bytes every time.

A file is: two zero bytes, a type (8 = unsigned byte), the number of dimensions, each dimension as a
big-endian 32-bit integer, then the bytes in row-major order; often gzipped.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_UNSIGNED_BYTE = 8


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, gzipped where the name ends in ``.gz``.

    Raises:
        ValueError: the file is no IDX file of unsigned bytes, or is cut short.
    """
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path}: is no whole gzip file ({error})") from error
    if len(raw) < 4 or raw[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise ValueError(f"{path}: is no IDX file of unsigned bytes (it starts with {raw[:4]!r})")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise ValueError(f"{path}: the header of {start} bytes is cut short at {len(raw)}")
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path}: holds {len(raw) - start} bytes, but its shape {shape} needs another number"
        )
    # A copy, because an array over `bytes` is read-only and torch warns about those.
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape).copy()


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """Write ``array`` as gzipped IDX; the same array gives the same bytes under the same zlib."""
    header = bytes((0, 0, _UNSIGNED_BYTE, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    # mtime=0: the time of writing would otherwise be part of the file.
    path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=9, mtime=0))
