"""Stored tensors come out right, whole and in slices, and leave no pages of the file behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from shoal.core.errors import OperatorError
from shoal.kernels import native
from shoal.models.files import ModelFiles
from shoal.models.safetensors import read_folder
from shoal.models.tensor_info import TensorInfo, Transform
from shoal.models.tensors.dequantize import dequantize
from shoal.models.tensors.read import TensorReader
from tests.models.tensors.test_dequantize import LAYOUT, random_blocks
from tests.sizes import size


def reader(
    tensors: dict[str, TensorInfo], folder: Path, session: native.Session | None = None
) -> TensorReader:
    return TensorReader(ModelFiles("test", folder, "safetensors", {}, tensors), session)


def read(source: TensorReader, name: str, dtype: torch.dtype, rows: slice = slice(None)) -> torch.Tensor:
    shape = source.tensors[name].shape
    start, stop, _ = rows.indices(shape[0])
    out = torch.full((max(0, stop - start), *shape[1:]), torch.nan, dtype=dtype)
    source.fill(name, start, out)
    return out


def test_every_type_is_converted_to_every_other(tmp_path: Path) -> None:
    stored = {
        "half": torch.randn(5, 7).to(torch.bfloat16),
        "full": torch.randn(4, 3),
        "old": torch.randn(6).to(torch.float16),
    }
    save_file(stored, tmp_path / "model.safetensors")
    source = reader(read_folder(tmp_path), tmp_path)
    for name, tensor in stored.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert torch.equal(read(source, name, dtype), tensor.to(dtype))
    assert torch.equal(read(source, "full", torch.float32, slice(1, 3)), stored["full"][1:3])
    assert read(source, "half", torch.float32, slice(4, 2)).shape == (0, 7)
    with pytest.raises(KeyError):
        source.fill("absent", 0, torch.empty(1))


def resident(file: Path) -> int:
    """Bytes of the file's mappings that are in this process's memory."""
    found, within = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            within = line.endswith(str(file))
        elif within and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pages_of_the_file_are_let_go_as_they_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = torch.randn(4096, 512)
    save_file({"a": stored, "b": torch.randn(64, 512)}, tmp_path / "model.safetensors")
    source = reader(read_folder(tmp_path), tmp_path)
    out = torch.empty(4096, 512, dtype=dtype)
    for start in range(0, 4096, 256):
        source.fill("a", start, out[start : start + 256])
        assert resident(tmp_path / "model.safetensors") < 1 << 20
    assert torch.equal(out, stored.to(dtype))


def test_a_file_with_tensors_at_odd_places(tmp_path: Path) -> None:
    values = torch.randn(5, 3)
    (tmp_path / "odd").write_bytes(b"abc" + values.numpy().tobytes())
    source = reader({"t": TensorInfo("t", (5, 3), "F32", tmp_path / "odd", 3, 60)}, tmp_path)
    assert torch.equal(read(source, "t", torch.float32, slice(1, 4)), values[1:4])


def test_types_without_arithmetic_here_are_refused_by_name(tmp_path: Path) -> None:
    save_file({"whole": torch.ones(3, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(OperatorError, match="'whole' is stored as I8"):
        reader(read_folder(tmp_path), tmp_path).fill("whole", 0, torch.empty(3))


@settings(max_examples=size(60, 2000), deadline=None)
@given(
    stored=st.sampled_from(["F32", "F16", "BF16", *LAYOUT]),
    transform=st.sampled_from(["none", "unpermute", "minus_one"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    heads=st.integers(1, 4),
    half=st.integers(1, 5),
    cut=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    seed=st.integers(0, 2**32 - 1),
    compiled=st.booleans(),
)
def test_slices_equal_the_whole_under_every_transform(
    tmp_path_factory: pytest.TempPathFactory,
    stored: str,
    transform: Transform,
    dtype: torch.dtype,
    heads: int,
    half: int,
    cut: tuple[int, int],
    seed: int,
    compiled: bool,
) -> None:
    rows, columns = heads * half * 2, 512 if stored not in ("F32", "F16", "BF16") else 6
    raw, values = stored_matrix(stored, rows, columns, seed)
    file = tmp_path_factory.getbasetemp() / "matrix"
    file.write_bytes(b"prefix.." + raw)
    info = TensorInfo("m", (rows, columns), stored, file, 8, len(raw), transform, heads)
    session = native.Session(2) if compiled and native.available() else None
    source = reader({"m": info}, file.parent, session)
    if transform == "unpermute":
        # The published inverse of llama.cpp's permutation: row 2i + j of a head is row j * half + i.
        values = values.view(heads, half, 2, columns).transpose(1, 2).reshape(rows, columns)
    elif transform == "minus_one":
        values = values - 1.0
    expected = values.to(dtype)
    assert torch.equal(read(source, "m", dtype), expected)
    part = slice(*cut)
    assert torch.equal(read(source, "m", dtype, part), expected[part])


def stored_matrix(stored: str, rows: int, columns: int, seed: int) -> tuple[bytes, torch.Tensor]:
    """Bytes of a matrix in a stored type, and its values in float32."""
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if stored in plain:
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(rows, columns, generator=generator).to(plain[stored])
        return matrix.view(torch.uint8).numpy().tobytes(), matrix.float()
    blocks = random_blocks(stored, rows * columns // LAYOUT[stored][0], seed)
    # Numbers that float32 and bfloat16 hold; huge ones would only test infinities.
    out = np.empty((len(blocks), LAYOUT[stored][0]), np.float32)
    dequantize(blocks, stored, out)
    return blocks.tobytes(), torch.from_numpy(out).view(rows, columns)


def test_a_vector_of_biases_is_put_back_in_order(tmp_path: Path) -> None:
    values = torch.arange(16, dtype=torch.float32)
    permuted = values.view(2, 2, 4).transpose(1, 2).reshape(16)
    file = tmp_path / "bias"
    file.write_bytes(permuted.numpy().tobytes())
    info = TensorInfo("b", (16,), "F32", file, 0, 64, "unpermute", 2)
    source = reader({"b": info}, tmp_path)
    assert torch.equal(read(source, "b", torch.float32), values)
    assert torch.equal(read(source, "b", torch.float32, slice(3, 11)), values[3:11])
