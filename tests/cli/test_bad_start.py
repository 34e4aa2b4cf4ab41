"""Starts that cannot succeed: one line with file and remedy, exit code 2, nothing half-written."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs.support import write_lines
from tests.models.build import llama_metadata, llama_tensors, safetensors_bytes, write_gguf

ROOT = Path(__file__).parents[2]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


def folder_with(path: Path, **files: bytes) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    for name, data in files.items():
        (path / name.replace("__", ".")).write_bytes(data)
    return path


def truncated_safetensors(path: Path) -> Path:
    header = {"model.norm.weight": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}
    return folder_with(path / "m", model__safetensors=safetensors_bytes(header, b"\0" * 40))


def cut_gguf(path: Path) -> Path:
    file = write_gguf(path / "m.gguf", llama_metadata(), llama_tensors())
    file.write_bytes(file.read_bytes()[:-100])
    return file


def corrupted_gguf(path: Path) -> Path:
    file = write_gguf(path / "m.gguf", llama_metadata(), llama_tensors())
    data = bytearray(file.read_bytes())
    data[16:24] = b"\xff" * 8
    file.write_bytes(data)
    return file


def not_gguf(path: Path) -> Path:
    (path / "m.gguf").write_bytes(b"hello" * 100)
    return path / "m.gguf"


def pickled(path: Path) -> Path:
    return folder_with(path / "m", pytorch_model__bin=pickle.dumps({"a": 1}))


def pickle_file(path: Path) -> Path:
    (path / "m.pt").write_bytes(pickle.dumps({"a": 1}))
    return path / "m.pt"


def no_config(path: Path) -> Path:
    (path / "m").mkdir()
    return path / "m"


def no_tokenizer(path: Path) -> Path:
    """A folder whose weights are sound but whose tokenizer.json is missing."""
    shapes = {
        "model.embed_tokens.weight": [32, 16],
        "lm_head.weight": [32, 16],
        "model.norm.weight": [16],
        "model.layers.0.input_layernorm.weight": [16],
        "model.layers.0.post_attention_layernorm.weight": [16],
        "model.layers.0.self_attn.q_proj.weight": [16, 16],
        "model.layers.0.self_attn.k_proj.weight": [8, 16],
        "model.layers.0.self_attn.v_proj.weight": [8, 16],
        "model.layers.0.self_attn.o_proj.weight": [16, 16],
        "model.layers.0.mlp.gate_proj.weight": [24, 16],
        "model.layers.0.mlp.up_proj.weight": [24, 16],
        "model.layers.0.mlp.down_proj.weight": [16, 24],
    }
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return folder_with(path / "m", model__safetensors=safetensors_bytes(header, b"\0" * end))


def missing(path: Path) -> Path:
    return path / "m"


def refused(tmp_path: Path, *arguments: str) -> str:
    """The one line of a run that is refused; ``tmp_path/in.jsonl`` is its input."""
    command = [sys.executable, "-m", "shoal.cli.main", "run", str(tmp_path / "in.jsonl"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("shoal: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith(")\n"), "no remedy"
    return done.stderr


@pytest.mark.parametrize(
    "verb", [("run", "in.jsonl", "-o", "out.jsonl"), ("plan", "in.jsonl"), ("calibrate",)]
)
def test_a_model_that_is_not_named(tmp_path: Path, verb: tuple[str, ...]) -> None:
    write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    command = (sys.executable, "-m", "shoal.cli.main", *verb)
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert "Missing option '--model'" in found.stderr
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "damaged",
    [
        *(truncated_safetensors, cut_gguf, corrupted_gguf, not_gguf),
        *(pickled, pickle_file, no_config, no_tokenizer, missing),
    ],
)
def test_a_model_that_cannot_be_read(tmp_path: Path, damaged: Callable[[Path], Path]) -> None:
    write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    model = damaged(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    line = refused(tmp_path, "-o", str(tmp_path / "out.jsonl"), "--model", str(model))
    assert str(model).rstrip("/") in line
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_where_nothing_can_be_written(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    nowhere = tmp_path / "no" / "out.jsonl"
    assert str(nowhere) in refused(tmp_path, "-o", str(nowhere), "--model", "null")
    assert "/dev/full" in refused(tmp_path, "-o", "/dev/full", "--model", "null")
    assert str(tmp_path) in refused(tmp_path, "-o", str(tmp_path), "--model", "null")
    assert "one file" in refused(tmp_path, "-o", str(tmp_path / "in.jsonl"), "--model", "null")
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_full_disk(tmp_path: Path) -> None:
    """The spool does not fit: a limit on the size of files stands for the disk."""
    write_lines(tmp_path / "in.jsonl", [{"prompt": "a" * 200, "id": i} for i in range(100)])
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from shoal.cli.main import main\n"
        "main()\n"
    )
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", code, "run", str(tmp_path / "in.jsonl"), "-o", str(output)]
    done = subprocess.run([*command, "--model", "null"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "out.jsonl.spool" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_two_runs_on_one_journal(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    journal = tmp_path / "out.jsonl.journal"
    descriptor = os.open(journal, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    line = refused(tmp_path, "-o", str(tmp_path / "out.jsonl"), "--model", "null")
    os.close(descriptor)
    assert str(journal) in line
    assert "another shoal run" in line
