"""Safetensors headers, checked before anything in them is believed.

Layout, from the format's specification: u64 (little endian) header length, the header as JSON
(name -> dtype, shape, [begin, end] counted from the end of the header), the data without holes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from shoal.core.errors import OperatorError
from shoal.models.tensor_info import TensorInfo

REMEDY = "download the file again"

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "C64": 8,
}
_MAX_HEADER_BYTES = 100 << 20
_MAX_DIMENSIONS = 8


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file by name.

    Raises:
        OperatorError: not readable, truncated, or inconsistent in any way.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8 or length > _MAX_HEADER_BYTES:
                _refuse(path, f"truncated or corrupted: a header of {length} bytes in a file of {size}")
            header = file.read(length)
    except OSError as error:
        raise OperatorError(
            f"cannot be read: {error.strerror}", where=str(path), remedy="check the path and its permissions"
        ) from None
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries = {
            name: msgspec.json.decode(value, type=_Entry)
            for name, value in raw.items()
            if name != "__metadata__"
        }
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        _refuse(path, f"corrupted header: {str(error)[:120]}")
    return _checked(path, entries, data_start=8 + length, size=size)


def _checked(path: Path, entries: dict[str, _Entry], *, data_start: int, size: int) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, stop = entry.data_offsets
        item = ITEM_BYTES.get(entry.dtype)
        if item is None:
            _refuse(path, f"tensor {name[:80]!r} has type {entry.dtype[:20]!r}, which shoal does not know")
        if len(entry.shape) > _MAX_DIMENSIONS or any(length < 0 for length in entry.shape):
            _refuse(path, f"corrupted header: tensor {name[:80]!r} has shape {str(entry.shape)[:80]}")
        if begin != end or stop - begin != math.prod(entry.shape) * item:
            _refuse(path, f"corrupted header: tensor {name[:80]!r} has its bytes at {begin} to {stop}")
        end = stop
        if data_start + end > size:
            _refuse(path, f"truncated: tensor {name[:80]!r} ends at byte {data_start + end} of {size}")
        tensors[name] = TensorInfo(
            name, tuple(entry.shape), entry.dtype, path, data_start + begin, stop - begin
        )
    if data_start + end != size:
        _refuse(path, f"corrupted: {size - data_start - end} bytes belong to no tensor")
    return tensors


def read_index(path: Path) -> dict[str, str]:
    """``weight_map`` of a ``model.safetensors.index.json``: tensor name -> file name in the same folder.

    Raises:
        OperatorError: not readable, not such a map, or a name that leads out of the folder.
    """
    try:
        index = msgspec.json.decode(path.read_bytes(), type=_Index)
    except OSError as error:
        raise OperatorError(
            f"cannot be read: {error.strerror}", where=str(path), remedy="check the path and its permissions"
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        _refuse(path, f"corrupted index: {str(error)[:120]}")
    for file in index.weight_map.values():
        if Path(file).name != file or "\0" in file or "\\" in file:
            _refuse(path, f"corrupted index: {file[:80]!r} is not a file name in this folder")
    return index.weight_map


def read_folder(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a model folder: one file, shards with an index, or shards without one.

    Raises:
        OperatorError: no safetensors there, a shard that is missing or damaged, or a tensor in two shards.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return read_safetensors_header(single)
    if not index.is_file():
        return _joined(
            sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("consolidated"))
        )
    weight_map = read_index(index)
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        _refuse(index, f"the shard {missing[0]!r} is missing ({len(missing)} of {len(shards)} are)")
    tensors = _joined([folder / name for name in shards])
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            _refuse(index, f"tensor {name[:80]!r} is not in {file!r}")
    return tensors


def _joined(files: list[Path]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_safetensors_header(file).items():
            if name in tensors:
                _refuse(file, f"tensor {name[:80]!r} stands in {tensors[name].file.name} too")
            tensors[name] = info
    return tensors


def _refuse(path: Path, what: str) -> NoReturn:
    raise OperatorError(what, where=str(path), remedy=REMEDY)


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object.

    Raises:
        OperatorError: not readable, or not an object.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise OperatorError(
            f"cannot be read: {error.strerror}", where=str(path), remedy="check the path and its permissions"
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        _refuse(path, f"not a JSON object: {str(error)[:120]}")
