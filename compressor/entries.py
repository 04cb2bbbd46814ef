"""An entry of a store: an array, its shape and type, and a checksum of all of it and of its key.

Formula:  int8: x ≈ scale · q, one scale a row.
"""

import struct
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from compressor.tokens import Floats

DType = Literal["float32", "float16", "int8"]
CODES: Mapping[DType, int] = {"float32": 0, "float16": 1, "int8": 2}
_CHECKSUM = struct.Struct("<I")
_SHAPE = struct.Struct("<BII")
"""Dtype, rows, width."""


def fits(values: Floats, dtype: DType) -> bool:
    """Return whether the type holds such numbers: float16 ends at 65,504, and a row of int8 has one scale, which must be a number."""
    if dtype == "int8":
        return bool(np.isfinite(values).all())
    return dtype != "float16" or not bool((np.abs(values) > np.finfo(np.float16).max).any())


def encoded(key: bytes, values: Floats, dtype: DType) -> bytes:
    """Return an array (rows, width) as it is kept, with a checksum of it and of its key; in float32 where it does not fit."""
    rows, width = values.shape
    dtype = dtype if fits(values, dtype) else "float32"
    if dtype == "int8":
        scales = np.maximum(np.abs(values).max(1), 1e-12).astype(np.float32) / 127
        body = scales.tobytes() + np.round(values / scales[:, None]).astype(np.int8).tobytes()
    else:
        body = values.astype(dtype).tobytes()
    shape = _SHAPE.pack(CODES[dtype], rows, width)
    return b"".join((_CHECKSUM.pack(zlib.crc32(body, zlib.crc32(key + shape))), shape, body))


def decoded(key: bytes, entry: Any) -> Floats | None:
    """Return an entry's array; None where a byte of it was changed, or it is another key's."""
    if len(entry) < _CHECKSUM.size + _SHAPE.size:
        return None
    (checksum,), (code, rows, width) = _CHECKSUM.unpack_from(entry), _SHAPE.unpack_from(entry, _CHECKSUM.size)
    body = memoryview(entry)[_CHECKSUM.size + _SHAPE.size :]
    sizes = {0: 4 * rows * width, 1: 2 * rows * width, 2: 4 * rows + rows * width}
    if zlib.crc32(body, zlib.crc32(key + _SHAPE.pack(code, rows, width))) != checksum or sizes.get(code) != len(body):
        return None
    if code == CODES["int8"]:
        scales, numbers = np.frombuffer(body[: 4 * rows], np.float32), np.frombuffer(body[4 * rows :], np.int8)
        whole: Floats = numbers.reshape(rows, width) * scales[:, None]
        return whole
    return np.frombuffer(body, np.float32 if code == 0 else np.float16).reshape(rows, width).astype(np.float32)
