"""Safetensors headers: read right, or refused with the file's name and a remedy."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from shoal.core.errors import OperatorError
from shoal.models.safetensors import read_folder, read_safetensors_header
from tests.models.build import safetensors_bytes

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "__metadata__": {"format": "pt"},
}


def refused(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    with pytest.raises(OperatorError) as caught:
        read_safetensors_header(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy
    return caught.value.what


def changed(name: str, **fields: Any) -> bytes:
    return safetensors_bytes(GOOD | {name: GOOD[name] | fields}, bytes(32))


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    data = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "y": np.ones(5, np.float16),
        "n": np.zeros((0, 4)),
    }
    save_file(data, path)
    tensors = read_safetensors_header(path)
    assert {name: info.shape for name, info in tensors.items()} == {"x": (2, 3), "y": (5,), "n": (0, 4)}
    info = tensors["x"]
    raw = path.read_bytes()[info.offset : info.offset + info.size]
    assert np.array_equal(np.frombuffer(raw, np.float32).reshape(2, 3), data["x"])
    assert read_folder(tmp_path) == tensors


def test_damaged_headers(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    good = safetensors_bytes(GOOD, bytes(32))
    for cut in range(len(good)):
        refused(path, good[:cut])
    assert "belong to no tensor" in refused(path, good + b"x")
    assert "header of" in refused(path, struct.pack("<Q", 1 << 63) + good[8:])
    assert "corrupted header" in refused(path, safetensors_bytes(b"[" * 200_000, b""))
    assert "corrupted header" in refused(path, safetensors_bytes(b'{"a": {"dtype": "\xff"}}', b""))
    assert "its bytes at" in refused(path, changed("a", data_offsets=[0, 20]))
    assert "its bytes at" in refused(path, changed("b", data_offsets=[16, 24]))
    assert "its bytes at" in refused(path, changed("a", shape=[2, 1 << 70]))
    assert refused(path, changed("a", data_offsets=[24, 0]))
    assert refused(path, changed("a", data_offsets=[-24, 0]))
    assert "shape" in refused(path, changed("a", shape=[-2, -3]))
    assert "shape" in refused(path, changed("a", shape=[1] * 100))
    assert "F4_SPECIAL" in refused(path, changed("a", dtype="F4_SPECIAL"))
    assert refused(path, changed("a", shape="2x3"))


def sharded(folder: Path) -> dict[str, str]:
    save_file({"a": np.ones(2, np.float32)}, folder / "model-1.safetensors")
    save_file({"b": np.ones(3, np.float32)}, folder / "model-2.safetensors")
    return {"a": "model-1.safetensors", "b": "model-2.safetensors"}


def test_shards_with_and_without_index(tmp_path: Path) -> None:
    weight_map = sharded(tmp_path)
    assert set(read_folder(tmp_path)) == {"a", "b"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map}))
    tensors = read_folder(tmp_path)
    assert {name: info.file.name for name, info in tensors.items()} == weight_map


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": "model-1.safetensors", "b": "model-9.safetensors"}, "'model-9.safetensors' is missing"),
        ({"a": "model-2.safetensors", "b": "model-2.safetensors"}, "is not in"),
        ({"c": "model-1.safetensors"}, "is not in"),
        ({"a": "../model-1.safetensors"}, "not a file name"),
        ({"a": "/etc/passwd"}, "not a file name"),
        ({"a": 5}, "corrupted index"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, weight_map: dict[str, Any], said: str) -> None:
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(OperatorError, match=said):
        read_folder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model-3.safetensors")
    with pytest.raises(OperatorError, match="stands in"):
        read_folder(tmp_path)
