"""Jobs as files: what contestants read is what the bench runs; and the order of the whole contest."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.peers import models, roster, workload
from benchmarks.peers.__main__ import arguments
from benchmarks.peers.contestants.protocol import Job
from shoal.bench.jobs import JOBS
from shoal.models.files import open_model
from shoal.models.tensors.read import TensorReader


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300}))
    return tmp_path


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("model", roster.MODELS)
def test_a_job_file_says_the_job(folder, name, model):
    job = workload.job_of(name, model, folder, quick=True)
    digest = workload.write(job, folder / "job.json")
    read = Job(**json.loads((folder / "job.json").read_text()))
    assert all(np.array_equal(a, b) for a, b in zip(job.prompts, read.prompts, strict=True))
    assert read.outputs == job.outputs
    assert len(read.groups()) == (job.groups or len(job.prompts))
    assert all(0 <= token < 300 for prompt in read.prompts for token in prompt)
    assert model != "gemma270m" or {prompt[0] for prompt in read.prompts} == {models.GEMMA_BEGIN}
    assert workload.write(workload.job_of(name, model, folder, quick=True), folder / "again.json") == digest
    assert workload.write(workload.job_of(name, model, folder, quick=False), folder / "full.json") != digest


@pytest.mark.parametrize(
    ("flags", "word"), [(["--peers", "vlm"], "vlm"), (["--jobs", "all"], "all"), (["--models", "x"], "x")]
)
def test_unknown_cells_are_refused_by_name(monkeypatch, capsys, flags, word):
    monkeypatch.setattr("sys.argv", ["contest", *flags])
    with pytest.raises(SystemExit):
        arguments()
    assert f": {word}; known: " in capsys.readouterr().err


def test_the_gguf_file_holds_the_folders_weights(tmp_path):
    hidden, heads, kv_heads, size = 32, 4, 2, 8
    config = {
        "max_position_embeddings": 64,
        "hidden_size": hidden,
        "num_hidden_layers": 1,
        "intermediate_size": 48,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "rope_theta": 1e4,
        "rms_norm_eps": 1e-5,
        "vocab_size": 40,
    }
    shapes = {
        "model.embed_tokens.weight": (40, hidden),
        "model.norm.weight": (hidden,),
        "model.layers.0.input_layernorm.weight": (hidden,),
        "model.layers.0.post_attention_layernorm.weight": (hidden,),
        "model.layers.0.self_attn.q_proj.weight": (heads * size, hidden),
        "model.layers.0.self_attn.k_proj.weight": (kv_heads * size, hidden),
        "model.layers.0.self_attn.v_proj.weight": (kv_heads * size, hidden),
        "model.layers.0.self_attn.o_proj.weight": (hidden, heads * size),
        "model.layers.0.mlp.gate_proj.weight": (48, hidden),
        "model.layers.0.mlp.up_proj.weight": (48, hidden),
        "model.layers.0.mlp.down_proj.weight": (hidden, 48),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    models.write_gguf(tmp_path, tmp_path / "model.gguf")
    stored = TensorReader(open_model(str(tmp_path / "model.gguf")))
    assert set(stored.tensors) == set(tensors)
    for name, tensor in tensors.items():
        found = torch.empty_like(tensor)
        stored.fill(name, 0, found)
        assert torch.equal(found, tensor)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "none"
