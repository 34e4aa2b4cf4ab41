"""Weights: checked before they are read, read in slices, random ones the same however they are read."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from shoal.core.errors import OperatorError
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

    def read(self, name: str, rows: slice | None, dtype: torch.dtype) -> torch.Tensor:
        return self.tensors[name][rows or slice(None)].to(dtype)


@pytest.fixture
def architecture() -> Architecture:
    return read_architecture(CONFIG)


@pytest.fixture
def source(architecture: Architecture) -> Source:
    return Source({part.name: torch.randn(part.shape) for p in architecture.parameters() for part in p.parts})


def test_parts_stand_one_below_the_other_and_norms_are_factors(
    architecture: Architecture, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SLICE_BYTES", 300)
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
    monkeypatch.setattr(Source, "read", lambda *_: pytest.fail("read"))
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
    whole = source.read(name, None, torch.float32)
    assert torch.equal(source.read(name, slice(5, 17), torch.float32), whole[5:17])
    assert torch.equal(dummy_source(architecture, 3).read(name, None, torch.float32), whole)
    assert not torch.equal(dummy_source(architecture, 4).read(name, None, torch.float32), whole)
    assert len({float(row[0]) for row in whole}) == len(whole)
    assert 0.017 < float(whole.std()) < 0.023
    loaded = load_weights(architecture, source, torch.float32, "cpu")
    assert torch.equal(loaded.tensors["head.norm"], torch.ones(16))
