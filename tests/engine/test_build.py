"""Sizes are chosen from what is there, said in one line, and refused where they cannot hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.core.config import EngineConfig, parse_bytes
from shoal.core.errors import OperatorError
from shoal.engine import machine
from shoal.engine.build import prepare, start
from shoal.memory.kv import KVMemory
from shoal.memory.slots import SlotMemory

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
KV_BYTES = 2 * 2 * 2 * 16 * 4  # layers, K and V, heads, head size, float32


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return {"model": str(tmp_path), "load_format": "dummy"}


def test_a_pool_is_as_large_as_asked_and_sets_the_longest_sequence(model):
    prepared = prepare(EngineConfig(**model, kv_memory=KV_BYTES * 16 * 10))
    assert prepared.pages == 10
    assert prepared.model.max_model_len == 160
    assert "160 tokens (as asked)" in prepared.description


def test_the_pool_takes_what_is_left_but_never_more_than_can_be_used(model, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: machine.RESERVE + (8 << 30))
    prepared = prepare(EngineConfig(**model, max_num_seqs=4))
    assert prepared.pages == 4 * 1024 // 16
    assert "10.0 GiB free, weights 0.00, reserve 2.0" in prepared.description


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_model_len": 2000}, "above the model's 1024"),
        ({"max_model_len": 1000, "kv_memory": KV_BYTES * 16 * 10}, "does not fit the KV pool"),
        ({"kv_memory": 10}, "less than two tokens"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"device": "tpu"}, "unknown device"),
        ({"order": "fcsf"}, "did you mean 'fcfs'"),
        ({"admission": "sarathi-serve:rows=-1"}, "outside 0"),
        ({"admission": "sarathi-serve:rows=many"}, "'many' is not int"),
    ],
)
def test_what_cannot_hold_is_refused_with_its_name(model, changes, words):
    with pytest.raises(OperatorError, match=words):
        prepare(EngineConfig(**(model | changes)))


def test_no_memory_left_is_said_with_the_sum(model, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: 1 << 20)
    with pytest.raises(OperatorError, match=r"no memory left for KV: .*reserve"):
        prepare(EngineConfig(**model))


@pytest.mark.parametrize(
    ("text", "value"),
    [("2GiB", 2**31), ("500MB", 500_000_000), ("1.5k", 1500), ("123", 123), ("4 gi", 2**32)],
)
def test_sizes_are_read(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "many", "-1", "2GG", "1e9", "9" * 400])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(OperatorError, match="cannot read the size"):
        parse_bytes(text)


def test_threads_follow_the_quota(monkeypatch):
    monkeypatch.setattr(machine, "_cpu_quota", lambda: 1.5)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert machine.threads() == (1, "cgroup quota")
    assert machine.threads(16) == (16, "as asked")
    monkeypatch.setattr(machine, "_cpu_quota", lambda: None)
    assert machine.threads() == (8, "affinity mask")


def test_memory_is_capped_by_the_cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    free = machine.memory()
    (tmp_path / "memory.max").write_text(f"{1 << 28}\n")
    (tmp_path / "memory.current").write_text(f"{1 << 27}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {1 << 20}\n")
    assert machine.memory() == (1 << 27) + (1 << 20) < free
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory() >= 1 << 28


def test_a_pool_larger_than_the_memory_is_refused_before_it_fills(monkeypatch):
    monkeypatch.setattr("shoal.engine.machine.memory", lambda: 1 << 30)
    prepare(EngineConfig(model="null", max_model_len=1 << 20))
    with pytest.raises(OperatorError, match=r"does not fit, 1.0 GiB are free"):
        prepare(EngineConfig(model="null", max_model_len=1 << 30))


def test_slots_are_places_of_the_longest_sequence(model):
    token = KV_BYTES
    changes = {"max_model_len": 128, "kv_memory": 128 * 5 * token + 1, "layout": "slots"}
    prepared = prepare(EngineConfig(**(model | changes)))
    assert (prepared.pages, prepared.config.page_size, prepared.config.prefix_reuse) == (5, 128, False)
    assert "640 tokens in 5 places" in prepared.description
    assert "layout slots, prefix reuse off" in prepared.description
    few = prepare(EngineConfig(**(model | changes | {"max_num_seqs": 3})))
    assert few.pages == 3


def test_the_system_says_which_layout_unless_somebody_else_does():
    flover = prepare(EngineConfig(model="null", policy="flover:compact=false", max_model_len=64))
    assert flover.config.layout == "slots"
    memory = start(flover).memory
    assert isinstance(memory, SlotMemory)
    assert not memory.compact
    assert memory.page_size == 64
    paged = prepare(EngineConfig(model="null", policy="flover", layout="paged"))
    assert paged.config.prefix_reuse
    assert isinstance(start(paged).memory, KVMemory)
    assert prepare(EngineConfig(model="null")).config.layout == "paged"


def test_kernels_are_the_compiled_ones_where_they_were_built_and_the_choice_is_said(model, monkeypatch):
    monkeypatch.setattr(machine, "compiled", lambda: True)
    assert prepare(EngineConfig(**model)).kernels == "compiled"
    assert "compiled kernels" in prepare(EngineConfig(**model)).description
    assert prepare(EngineConfig(**model, kernels="plain")).kernels == "plain"
    monkeypatch.setattr(machine, "compiled", lambda: False)
    assert (
        "plain kernels (no compiler when shoal was installed)" in prepare(EngineConfig(**model)).description
    )
    with pytest.raises(OperatorError, match=r"not built.*C\+\+ compiler"):
        prepare(EngineConfig(**model, kernels="compiled"))


def test_a_measurement_with_other_kernels_is_another(model):
    one, other = (prepare(EngineConfig(**model, kernels=name)) for name in ("plain", "auto"))
    assert (one.identity.key == other.identity.key) == (one.kernels == other.kernels)
    assert (one.model.identity == other.model.identity) == (one.kernels == other.kernels)


@pytest.mark.parametrize(
    ("stored", "isa", "kernels", "wanted"),
    [
        ("bfloat16", "AVX-512 BF16", "auto", "bfloat16"),
        ("bfloat16", "AMX", "auto", "bfloat16"),
        ("bfloat16", "AVX2", "auto", "float32"),
        ("bfloat16", "AVX-512 BF16", "plain", "float32"),
        ("float32", "AVX-512 BF16", "auto", "float32"),
    ],
)
def test_weights_keep_their_type_where_the_processor_multiplies_it(
    model, monkeypatch, stored, isa, kernels, wanted
):
    monkeypatch.setattr(machine, "compiled", lambda: True)
    monkeypatch.setattr(machine, "isa", lambda: isa)
    Path(model["model"], "config.json").write_text(json.dumps({**CONFIG, "torch_dtype": stored}))
    assert prepare(EngineConfig(**model, kernels=kernels)).dtype == wanted
    assert prepare(EngineConfig(**model, kernels=kernels, dtype="float32")).dtype == "float32"


def contiguous(model, **changes):
    return prepare(EngineConfig(**(model | {"layout": "contiguous", "page_size": 32} | changes)))


def test_pages_of_places_are_whole_pages_of_the_system(model):
    assert "layout contiguous" in contiguous(model).description
    assert contiguous(model, max_num_seqs=3, max_model_len=100).places == (3, 4)
    with pytest.raises(OperatorError, match=r"a page of 8 positions is no whole.*multiple of"):
        contiguous(model, page_size=8)


def test_more_mappings_than_the_system_allows_are_refused_with_pages_that_do(model, monkeypatch):
    monkeypatch.setattr("shoal.engine.contiguous.max_mappings", lambda: 4096 + 50)
    with pytest.raises(OperatorError, match=r"16 places of 4 pages are more.*--page-size 64") as refused:
        contiguous(model, max_num_seqs=16, max_model_len=128)
    contiguous(model, max_num_seqs=16, max_model_len=128, page_size=64)
    assert refused.value.who == "operator"


def test_places_are_refused_where_there_is_no_such_memory(model, monkeypatch):
    monkeypatch.delattr("os.memfd_create")
    with pytest.raises(OperatorError, match="several addresses"):
        contiguous(model)
