"""Opening a model: what is read from it, and every bad start as one line with file and remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from shoal.core.errors import OperatorError
from shoal.models.files import open_model
from tests.models.build import llama_metadata, llama_tensors, write_gguf
from tests.models.test_tokenizer import by_transformers

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "eos_token_id": 2,
    "dtype": "bfloat16",
}


def folder(path: Path, **files: Any) -> Path:
    """A folder with config.json and one safetensors file; more JSON files by keyword (underscore: dot)."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"model.norm.weight": np.ones(4, np.float32)}, path / "model.safetensors")
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def refused(spec: Path | str, load_format: Any = "auto") -> OperatorError:
    with pytest.raises(OperatorError) as caught:
        open_model(str(spec), load_format)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_folder(tmp_path: Path) -> None:
    files = open_model(str(folder(tmp_path / "m", generation_config={"temperature": 0.6})))
    assert (files.name, files.path, files.format) == (str(tmp_path / "m"), tmp_path / "m", "safetensors")
    assert files.config == CONFIG
    assert files.tensors["model.norm.weight"].shape == (4,)
    assert files.generation_config == {"temperature": 0.6}
    assert files.stored_dtype == "F32"
    assert files.end_ids == (2,)
    assert files.chat_template is None
    assert open_model(str(tmp_path / "m"), "dummy").stored_dtype == "BF16"


def test_a_gguf_file_and_a_folder_that_holds_one(tmp_path: Path) -> None:
    metadata = llama_metadata(**{"tokenizer.chat_template": "{{ messages }}"})
    path = write_gguf(tmp_path / "tiny.gguf", metadata, llama_tensors())
    for spec in (path, tmp_path, tmp_path):
        files = open_model(str(spec))
        (tmp_path / "config.json").write_text("{}")
        assert files.name == str(spec)
        assert files.format == "gguf"
        assert files.path == path
        assert files.chat_template == "{{ messages }}"
        assert files.config["num_hidden_layers"] == 1
        assert files.end_ids == (2, files.tokenizer().token_to_id("<|im_end|>"))
        assert files.tokenizer() is files.tokenizer()
    assert open_model(str(path), "dummy").tensors == {}


@pytest.mark.parametrize(
    ("generation", "tokenizer", "expected"),
    [
        ({}, {}, (2,)),
        ({"eos_token_id": 5}, {}, (5,)),
        ({"eos_token_id": [5, 7, 5]}, {}, (5, 7)),
        ({"eos_token_id": [5, 7]}, {"eos_token": "▁the"}, (5, 7, 264)),
        ({}, {"eos_token": {"content": "</s>"}}, (2,)),
    ],
)
def test_end_ids(
    tmp_path: Path, generation: dict[str, Any], tokenizer: dict[str, Any], expected: tuple[int, ...]
) -> None:
    path = folder(tmp_path / "m", generation_config=generation, tokenizer_config=tokenizer)
    by_transformers(llama_metadata()).save(str(path / "tokenizer.json"))
    assert open_model(str(path)).end_ids == expected


def test_end_ids_that_are_no_ids(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", generation_config={"eos_token_id": ["x"]})
    with pytest.raises(OperatorError, match="eos_token_id"):
        assert open_model(str(path)).end_ids


def test_chat_templates_in_their_places(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", chat_template={"chat_template": "old"})
    assert open_model(str(path)).chat_template == "old"
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "listed"}]
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert open_model(str(path)).chat_template == "listed"
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "stated"}))
    assert open_model(str(path)).chat_template == "stated"
    (path / "chat_template.jinja").write_text("file")
    assert open_model(str(path)).chat_template == "file"


def test_the_fingerprint_is_the_contents_not_the_time(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    first = open_model(str(path)).fingerprint()
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    assert open_model(str(copy)).fingerprint() == first
    seen = {first}
    (copy / "config.json").write_text(json.dumps(CONFIG | {"rope_theta": 5.0}))
    seen.add(open_model(str(copy)).fingerprint())
    (copy / "tokenizer.json").write_text("{}")
    seen.add(open_model(str(copy)).fingerprint())
    save_file({"model.norm.weight": np.ones(5, np.float32)}, copy / "model.safetensors")
    seen.add(open_model(str(copy)).fingerprint())
    seen.add(open_model(str(copy), "dummy").fingerprint())
    (copy / "chat_template.jinja").write_text("file")
    seen.add(open_model(str(copy)).fingerprint())
    assert len(seen) == 6
    gguf = write_gguf(tmp_path / "a.gguf", llama_metadata(), llama_tensors())
    other = write_gguf(tmp_path / "b.gguf", llama_metadata(**{"general.name": "x"}), llama_tensors())
    tuned = write_gguf(tmp_path / "a2.gguf", llama_metadata(), llama_tensors(seed=1))
    assert len({open_model(str(f)).fingerprint() for f in (gguf, other, tuned, gguf)}) == 3


def test_bad_starts(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "absent").what
    assert "no such file" in refused("absent.gguf").what
    assert "no such file" in refused("just-a-name").what
    assert "no model named" in refused("").what
    assert "unknown" in refused(tmp_path, "zip").what
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json is missing" in refused(empty).what
    (empty / "config.json").write_text("{}")
    assert "*.safetensors is missing" in refused(empty).what
    assert "*.gguf is missing" in refused(empty, "gguf").what
    save_file({"model.norm.weight": np.ones(4, np.float32)}, empty / "model.safetensors")
    (empty / "config.json").write_text("[1]")
    assert "config.json" in refused(empty).where
    (empty / "config.json").write_text("[" * 100_000)
    assert "not a JSON object" in refused(empty).what
    wrong = write_gguf(tmp_path / "m.gguf", llama_metadata(), llama_tensors())
    assert "not a folder" in refused(wrong, "safetensors").what
    write_gguf(tmp_path / "n.gguf", llama_metadata(), llama_tensors())
    assert "2 GGUF files" in refused(tmp_path).what


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    for spec in (tmp_path, tmp_path / name):
        error = refused(spec)
        assert name in error.where
        assert "safetensors" in error.remedy


def test_a_missing_tokenizer_is_said_when_it_is_wanted(tmp_path: Path) -> None:
    files = open_model(str(folder(tmp_path / "m")))
    with pytest.raises(OperatorError, match=r"tokenizer\.json is missing"):
        files.tokenizer()


def test_a_name_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    error = refused("nobody/nothing@main")
    assert error.where == "nobody/nothing"
    assert "HF_HUB_OFFLINE" in error.remedy


def test_a_name_is_downloaded_with_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def snapshot(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder(tmp_path / "m"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert open_model("org/name@v1").format == "safetensors"
    assert (asked["name"], asked["revision"]) == ("org/name", "v1")
    assert not any("bin" in pattern or ".py" in pattern for pattern in asked["allow_patterns"])
