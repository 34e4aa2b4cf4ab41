"""What is read without torch is what is read with it, and what goes wrong is said to who waits."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import OperatorError
from shoal.kernels import native
from shoal.models import parameters
from shoal.models.architecture import Architecture
from shoal.models.files import ModelFiles
from shoal.models.registry import read_architecture
from shoal.models.tensor_info import TensorInfo
from shoal.models.tensors.ahead import Ahead
from shoal.models.tensors.read import TensorReader
from shoal.models.tensors.stored import Stored
from shoal.models.tensors.weights import load_weights
from tests.models.tensors.test_read import stored_matrix

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K")


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    return read_architecture(CONFIG)


def model(folder: Path, architecture: Architecture, types: dict[str, str], permuted: str = "") -> ModelFiles:
    """Every tensor in a file, matrices stored as ``types`` say, else as F32; one with its rows permuted."""
    tensors, content = {}, b"odd"
    for parameter in architecture.parameters():
        for part in parameter.parts:
            rows, columns = part.shape if len(part.shape) == 2 else (1, part.shape[0])
            stored = types.get(part.name, "F32")
            raw, _ = stored_matrix(stored, rows, columns, seed=len(tensors))
            transform, heads = ("unpermute", 4) if part.name == permuted else ("none", 0)
            tensors[part.name] = TensorInfo(
                part.name, part.shape, stored, folder / "all", len(content), len(raw), transform, heads
            )
            content += raw
    (folder / "all").write_bytes(content)
    return ModelFiles("test", folder, "safetensors", {}, tensors)


def names(architecture: Architecture) -> list[str]:
    return [part.name for p in architecture.parameters() if p.role == "matrix" for part in p.parts]


@settings(deadline=None)  # a row at a time on a busy machine
@given(data=st.data(), wanted=st.sampled_from(["F32", "BF16"]), size=st.sampled_from([1, 5000, 1 << 20]))
def test_matrices_are_those_that_torch_reads(tmp_path_factory, architecture, data, wanted, size):
    types = {name: data.draw(st.sampled_from(TYPES)) for name in names(architecture)}
    permuted = "model.layers.0.self_attn.q_proj.weight" if data.draw(st.booleans()) else ""
    files = model(tmp_path_factory.getbasetemp(), architecture, types, permuted)
    session, dtype = native.Session(2), torch.float32 if wanted == "F32" else torch.bfloat16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameters, "SLICE_BYTES", size)
        found = Ahead(architecture, files, wanted, session).take()
    want = load_weights(architecture, TensorReader(files, session), dtype, "cpu", session=session)
    for parameter in architecture.parameters():
        parts = [files.tensors[part.name] for part in parameter.parts]
        plain = {"F32", "F16", "BF16"} - {wanted}
        can = not any(info.stored in plain or info.transform != "none" for info in parts)
        assert (parameter.name in found) == (can and parameter.role == "matrix")
        if parameter.name in found:
            tensor = want.tensors[parameter.name]
            whole = tensor.as_strided((native.padded_rows(len(tensor)), tensor.shape[1]), tensor.stride())
            assert np.array_equal(found[parameter.name], whole.contiguous().view(torch.uint8).numpy())


def test_the_rest_is_loaded_beside_what_is_ready(tmp_path, architecture):
    files, session = model(tmp_path, architecture, {}), native.Session(2)
    ready = {"embed": torch.full((40, 256), 7.0)}
    seen: list[int] = []
    loaded = load_weights(
        architecture,
        TensorReader(files),
        torch.float32,
        "cpu",
        lambda done, total: seen.append(done),
        session,
        ready,
    )
    assert loaded.tensors["embed"] is ready["embed"]
    assert seen[-1] == loaded.bytes


def test_what_goes_wrong_is_raised_where_it_is_waited_for(tmp_path, architecture):
    files = model(tmp_path, architecture, {})
    (tmp_path / "all").unlink()
    with pytest.raises(OperatorError, match="cannot be mapped"):
        Ahead(architecture, files, "F32", native.Session(1)).take()
    lacking = model(tmp_path, architecture, {})
    del lacking.tensors["model.norm.weight"]
    with pytest.raises(OperatorError, match="missing"):
        Ahead(architecture, lacking, "F32", native.Session(1))


def test_a_matrix_larger_than_memory_is_refused(tmp_path, architecture, monkeypatch):
    files = model(tmp_path, architecture, {})

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(OperatorError, match="no memory for"):
        Ahead(architecture, files, "F32", native.Session(1)).take()


def test_it_says_how_far_it_is_and_gives_up_when_told(tmp_path, architecture, monkeypatch):
    files = model(tmp_path, architecture, {})
    seen: list[tuple[int, int]] = []
    Ahead(architecture, files, "F32", native.Session(1)).take(lambda *far: seen.append(far))
    total = architecture.weight_bytes(4)
    matrices = sum(4 * p.elements for p in architecture.parameters() if p.role == "matrix")
    assert seen[-1] == (matrices, total)
    assert seen == sorted(seen)

    held, goes_on = Stored.rows, threading.Event()
    monkeypatch.setattr(Stored, "rows", lambda *asked: goes_on.wait(60) and held(*asked))
    reading = Ahead(architecture, files, "F32", native.Session(1))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reading.take(stop)
    goes_on.set()
    assert len(reading.take()) <= 1


def test_nothing_of_it_needs_torch():
    program = "import sys, shoal.engine.tensors.begin; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
