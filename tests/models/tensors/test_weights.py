"""Weights: checked before they are read, read in slices, random ones the same however they are read."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from shoal.core.errors import OperatorError
from shoal.kernels import native
from shoal.models import parameters
from shoal.models.architecture import Architecture
from shoal.models.registry import read_architecture
from shoal.models.tensors import weights
from shoal.models.tensors.weights import dummy_source, load_weights

CONFIG = {
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 8,
}


@dataclass
class Source:
    tensors: dict[str, torch.Tensor]

    def fill(self, name: str, start: int, out: torch.Tensor) -> None:
        out.copy_(self.tensors[name][start : start + len(out)])


@pytest.fixture
def architecture() -> Architecture:
    return read_architecture(CONFIG)


@pytest.fixture
def source(architecture: Architecture) -> Source:
    return Source({part.name: torch.randn(part.shape) for p in architecture.parameters() for part in p.parts})


def test_parts_stand_one_below_the_other_and_norms_are_factors(
    architecture: Architecture, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parameters, "SLICE_BYTES", 300)
    seen: list[tuple[int, int]] = []
    loaded = load_weights(
        architecture, source, torch.bfloat16, "cpu", lambda done, total: seen.append((done, total))
    )
    stem = "model.layers.1.self_attn."
    wanted = torch.cat([source.tensors[f"{stem}{name}_proj.weight"] for name in "qkv"])
    assert torch.equal(loaded.tensors["layers.1.qkv"], wanted.bfloat16())
    norm = loaded.tensors["layers.0.attention.before"]
    assert norm.dtype == torch.float32
    assert torch.equal(norm, source.tensors["model.layers.0.input_layernorm.weight"] + 1.0)
    assert seen[-1] == (loaded.bytes, loaded.bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.skipif(not native.available(), reason="the kernels were not built")
@pytest.mark.parametrize("slice_bytes", [1, 300, 5000, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_packed_as_they_are_read_are_packed_alike(
    architecture: Architecture, source: Source, slice_bytes: int, dtype: torch.dtype, monkeypatch
) -> None:
    monkeypatch.setattr(parameters, "SLICE_BYTES", slice_bytes)
    session = native.Session(2)
    packed = load_weights(architecture, source, dtype, "cpu", session=session)
    plain = load_weights(architecture, source, dtype, "cpu")
    assert packed.packed
    assert not plain.packed
    for parameter in architecture.parameters():
        ours, theirs = packed.tensors[parameter.name], plain.tensors[parameter.name]
        if parameter.role == "matrix":
            session.pack(theirs)
            rows = native.padded_rows(len(ours))
            ours, theirs = (
                tensor.as_strided((rows, tensor.shape[1]), tensor.stride()) for tensor in (ours, theirs)
            )
        assert torch.equal(ours, theirs), parameter.name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.norm.weight"), "'model.norm.weight' is missing"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(1)}), "not part of Gemma3"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(17)}), r"model.norm.weight.*\(17,\).*\(16,\)"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(4, 4)}), r"\(4, 4\)"),
        (lambda t: t.update({"x" * 5000: torch.zeros(1)}), "xxx"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_any_is_read(
    architecture: Architecture, source: Source, change, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(source.tensors)
    monkeypatch.setattr(Source, "fill", lambda *_: pytest.fail("read"))
    with pytest.raises(OperatorError, match=said) as caught:
        load_weights(architecture, source, torch.float32, "cpu")
    assert len(str(caught.value)) < 500


def test_copies_of_tied_heads_and_rotary_tables_are_left_alone(
    architecture: Architecture, source: Source
) -> None:
    source.tensors["lm_head.weight"] = torch.zeros(50, 16)
    source.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    load_weights(architecture, source, torch.float32, "cpu")


def test_a_model_larger_than_memory_is_refused(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(OperatorError, match="no memory for embed"):
        load_weights(architecture, dummy_source(architecture), torch.float32, "cpu")


def test_random_weights_depend_on_seed_and_name_alone(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 100)
    source, name = dummy_source(architecture, 3), "model.embed_tokens.weight"
    whole, part, same, other = (torch.empty(rows, 16) for rows in (50, 12, 50, 50))
    source.fill(name, 0, whole)
    source.fill(name, 5, part)
    dummy_source(architecture, 3).fill(name, 0, same)
    dummy_source(architecture, 4).fill(name, 0, other)
    assert torch.equal(part, whole[5:17])
    assert torch.equal(same, whole)
    assert not torch.equal(other, whole)
    assert len({float(row[0]) for row in whole}) == len(whole)
    assert 0.017 < float(whole.std()) < 0.023
    loaded = load_weights(architecture, source, torch.float32, "cpu")
    assert torch.equal(loaded.tensors["head.norm"], torch.ones(16))
