"""GGUF headers: metadata and tensor table, read with every length checked before it is believed.

Layout (little endian), from the GGUF specification of the ggml project: magic ``GGUF``, u32 version,
u64 tensor count, u64 metadata count; the metadata pairs (string key, u32 type, value); the tensor
table (string name, u32 dimensions, u64 sizes fastest first, u32 type, u64 offset); padding up to
``general.alignment``; the data.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from shoal.core.errors import OperatorError

REMEDY = "download or convert the file again"

# ggml type number -> (name, elements in a block, bytes in a block)
BLOCK_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    6: ("Q5_0", 32, 22),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
# Named so that the refusal can say what the file holds.
OTHER_TYPES = {
    3: "Q4_1",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _BOOL, _FLOAT32 = 8, 9, 7, 6
# Far above any published file; they bound the memory a lying header can ask for.
_MAX_HEADER_BYTES = 512 << 20
_MAX_STRING_BYTES = 16 << 20
_MAX_STRINGS = 1 << 22
_MAX_PAIRS = _MAX_TENSORS = 1 << 16
_MAX_NESTING = 4
_MAX_DIMENSIONS = 4


class GgufTensor(msgspec.Struct, frozen=True):
    """One row of the tensor table: sizes in torch order, offset from the start of the file, bytes."""

    shape: tuple[int, ...]
    stored: str
    offset: int
    size: int


class GgufHeader(msgspec.Struct, frozen=True):
    """All that comes before the data. Arrays of numbers are numpy arrays, arrays of strings lists."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data_start: int


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of one little-endian GGUF file of version 2 or 3.

    Raises:
        OperatorError: not readable, not GGUF, truncated, corrupted, or of a kind shoal does not read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise OperatorError("not a GGUF file: too short", where=str(path), remedy=REMEDY)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
                return _Parser(path, blob).header()
    except OSError as error:
        raise OperatorError(
            f"cannot be read: {error.strerror}", where=str(path), remedy="check the path and its permissions"
        ) from None


class _Parser:
    """A cursor over the mapped file; every read checks the bytes that remain first."""

    def __init__(self, path: Path, blob: mmap.mmap) -> None:
        self.path = path
        self.blob = blob
        self.size = len(blob)
        self.end = min(self.size, _MAX_HEADER_BYTES)
        self.at = 4

    def refuse(self, what: str, remedy: str = REMEDY) -> NoReturn:
        raise OperatorError(what, where=str(self.path), remedy=remedy)

    def header(self) -> GgufHeader:
        if self.blob[:4] != b"GGUF":
            self.refuse("not a GGUF file: it does not begin with GGUF")
        version = self.number("I")
        if version not in (2, 3):
            if version in (0x02000000, 0x03000000):
                self.refuse("a big-endian GGUF file", "convert the model for a little-endian machine")
            self.refuse(f"GGUF version {version}; versions 2 and 3 are read", "convert the model again")
        tensor_count, pair_count = self.number("Q"), self.number("Q")
        if tensor_count > _MAX_TENSORS or pair_count > _MAX_PAIRS:
            self.refuse(f"corrupted header: {tensor_count} tensors and {pair_count} metadata pairs")
        metadata = self.pairs(pair_count)
        rows = self.table(tensor_count)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            self.refuse(f"corrupted header: general.alignment is {str(alignment)[:40]}")
        data_start = -(-self.at // alignment) * alignment
        tensors = {
            name: GgufTensor(shape, stored, data_start + offset, size)
            for name, (shape, stored, offset, size) in rows.items()
        }
        self.check_places(tensors, alignment, data_start)
        return GgufHeader(self.path, version, metadata, tensors, data_start)

    def take(self, count: int) -> int:
        """Move past ``count`` bytes that must be there; gives where they begin."""
        at = self.at
        if count > self.end - at:
            self.refuse(f"truncated or corrupted: {count} bytes of header expected at byte {at}")
        self.at = at + count
        return at

    def number(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.blob, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        length = self.number("Q")
        if length > _MAX_STRING_BYTES:
            self.refuse(f"corrupted header: a string of {length} bytes at byte {self.at}")
        at = self.take(length)
        try:
            return self.blob[at : at + length].decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"corrupted header: the string at byte {at} is not UTF-8")

    def pairs(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self.string()
            if key in metadata:
                self.refuse(f"corrupted header: metadata key {key[:80]!r} stands twice")
            metadata[key] = self.value(self.number("I"), _MAX_NESTING)
        return metadata

    def value(self, kind: int, nesting: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(nesting)
        if kind not in _SCALARS:
            self.refuse(f"corrupted header: metadata type {kind} at byte {self.at}")
        code = _SCALARS[kind]
        number = self.number(code)
        if kind == _BOOL:
            return bool(number)
        if kind == _FLOAT32:
            # 1e-06 was written, and 9.99999997e-07 is what widening makes of it: keep the shortest
            # decimal that gives the same float32.
            return float(str(np.float32(number)))
        return number

    def array(self, nesting: int) -> Any:
        if nesting == 0:
            self.refuse(f"corrupted header: arrays nested too deep at byte {self.at}")
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            code = "<" + ("?" if kind == _BOOL else _SCALARS[kind])
            at = self.take(count * struct.calcsize(code))
            return np.frombuffer(self.blob[at : self.at], dtype=np.dtype(code))
        if count > _MAX_STRINGS or count * 8 > self.end - self.at:
            self.refuse(f"truncated or corrupted: an array of {count} elements at byte {self.at}")
        if kind == _STRING:
            return self.strings(count)
        if kind != _ARRAY:
            self.refuse(f"corrupted header: array of type {kind} at byte {self.at}")
        return [self.array(nesting - 1) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """``count`` strings in one tight loop: vocabularies have hundreds of thousands."""
        blob, at, end = self.blob, self.at, self.end
        unpack = struct.Struct("<Q").unpack_from
        found: list[str] = []
        append = found.append
        try:
            for _ in range(count):
                start = at + 8
                at = start + unpack(blob, at)[0]
                if at > end or at - start > _MAX_STRING_BYTES:
                    self.refuse(f"truncated or corrupted: a string of {at - start} bytes at byte {start}")
                append(blob[start:at].decode("utf-8"))
        except struct.error:
            self.refuse(f"truncated: a string was expected at byte {at}")
        except UnicodeDecodeError:
            self.refuse(f"corrupted header: the string at byte {start} is not UTF-8")
        self.at = at
        return found

    def table(self, count: int) -> dict[str, tuple[tuple[int, ...], str, int, int]]:
        rows: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
        for _ in range(count):
            name = self.string()
            if name in rows:
                self.refuse(f"corrupted header: tensor {name[:80]!r} stands twice")
            dimensions = self.number("I")
            if not 1 <= dimensions <= _MAX_DIMENSIONS:
                self.refuse(f"corrupted header: tensor {name[:80]!r} has {dimensions} dimensions")
            shape = tuple(reversed([self.number("Q") for _ in range(dimensions)]))
            kind, offset = self.number("I"), self.number("Q")
            stored, size = self.layout(name, shape, kind)
            rows[name] = (shape, stored, offset, size)
        return rows

    def layout(self, name: str, shape: tuple[int, ...], kind: int) -> tuple[str, int]:
        if kind not in BLOCK_TYPES:
            known = ", ".join(entry[0] for entry in BLOCK_TYPES.values())
            self.refuse(
                f"tensor {name[:80]!r} has type {OTHER_TYPES.get(kind, kind)}, which shoal does not read",
                f"use a file of the types {known}",
            )
        stored, elements, block_bytes = BLOCK_TYPES[kind]
        if 0 in shape or shape[-1] % elements:
            self.refuse(f"corrupted header: tensor {name[:80]!r} of type {stored} has shape {shape}")
        return stored, math.prod(shape) // elements * block_bytes

    def check_places(self, tensors: dict[str, GgufTensor], alignment: int, data_start: int) -> None:
        end = data_start
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
            if tensor.offset % alignment:
                self.refuse(f"corrupted header: tensor {name[:80]!r} is not aligned to {alignment} bytes")
            if tensor.offset < end:
                self.refuse(f"corrupted header: tensor {name[:80]!r} overlaps another")
            end = tensor.offset + tensor.size
            if end > self.size:
                self.refuse(f"truncated: tensor {name[:80]!r} ends at byte {end} of {self.size}")
