"""GGUF headers: read right, or refused with the file's name and a remedy."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from shoal.core.errors import OperatorError
from shoal.models.gguf import read_gguf_header
from shoal.models.gguf_names import GgufNames
from shoal.models.registry import read_architecture
from tests.models.build import gguf_bytes, gguf_string, llama_metadata, llama_tensors, write_gguf


def refused(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    with pytest.raises(OperatorError) as caught:
        GgufNames(read_gguf_header(path))
    error = caught.value
    assert str(path) in str(error)
    assert error.remedy
    assert "\n" not in str(error)
    return error.what


def test_reads_what_the_gguf_package_wrote(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint32("a.small", 7)
    writer.add_uint64("a.large", 1 << 40)
    writer.add_int16("a.negative", -5)
    writer.add_float32("a.float", 1e-6)
    writer.add_float64("a.double", 1e-6)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "naïve 文字 🙂")
    writer.add_array("a.texts", ["", "▁▁", "x" * 300])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -1.5])
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("first", data)
    writer.add_tensor("second", np.ones((2, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf_header(path)
    read = header.metadata
    assert (read["a.small"], read["a.large"], read["a.negative"]) == (7, 1 << 40, -5)
    assert (read["a.float"], read["a.double"], read["a.flag"]) == (1e-6, 1e-6, True)
    assert read["a.text"] == "naïve 文字 🙂"
    assert read["a.texts"] == ["", "▁▁", "x" * 300]
    assert read["a.numbers"].tolist() == [1, -2, 3]
    assert read["a.floats"].tolist() == [0.5, -1.5]
    first = header.tensors["first"]
    assert (first.shape, first.stored, first.size) == ((3, 4), "F32", 48)
    raw = path.read_bytes()[first.offset : first.offset + first.size]
    assert np.array_equal(np.frombuffer(raw, np.float32).reshape(3, 4), data)
    assert header.tensors["second"].stored == "F16"


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 64])
def test_versions_and_alignment(tmp_path: Path, version: int, alignment: int) -> None:
    metadata = llama_metadata(**{"general.alignment": alignment})
    path = write_gguf(tmp_path / "m.gguf", metadata, llama_tensors(), version=version, alignment=alignment)
    header = read_gguf_header(path)
    assert header.version == version
    assert all(tensor.offset % alignment == 0 for tensor in header.tensors.values())


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    raw = gguf_bytes(llama_metadata(), llama_tensors())
    data = read_gguf_header(write_gguf(tmp_path / "whole.gguf", llama_metadata(), llama_tensors())).data_start
    cuts = [*range(0, 600, 7), *np.linspace(600, data, 40, dtype=int), data + 5, len(raw) - 100]
    for cut in cuts:
        refused(tmp_path / "cut.gguf", raw[:cut])


def test_lying_lengths_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    huge = struct.pack("<Q", 1 << 62)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    assert "string of" in refused(path, head + huge + bytes(64))
    assert "tensors and" in refused(path, b"GGUF" + struct.pack("<I", 3) + huge + huge + bytes(64))
    key = gguf_string("k")
    assert "header expected" in refused(path, head + key + struct.pack("<II", 9, 4) + huge + bytes(64))
    assert "array of" in refused(path, head + key + struct.pack("<II", 9, 8) + huge + bytes(64))
    nested = struct.pack("<IQ", 9, 1) * 50
    assert "nested too deep" in refused(path, head + key + struct.pack("<I", 9) + nested + bytes(64))
    assert "metadata type 77" in refused(path, head + key + struct.pack("<I", 77) + bytes(64))


def test_kinds_of_files_that_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    whole = gguf_bytes(llama_metadata(), llama_tensors())
    assert "not a GGUF" in refused(path, b"PK\x03\x04" + whole[4:])
    assert "version 1;" in refused(path, whole[:4] + struct.pack("<I", 1) + whole[8:])
    assert "big-endian" in refused(path, whole[:4] + struct.pack(">I", 3) + whole[8:])
    assert "not a GGUF" in refused(path, b"GG")


def test_tensor_tables_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    whole = gguf_bytes(llama_metadata(), llama_tensors())
    name = gguf_string("blk.0.attn_q.weight")
    at = whole.index(name) + len(name)

    def patched(offset: int, code: str, value: int) -> bytes:
        place = at + offset
        return whole[:place] + struct.pack(code, value) + whole[place + struct.calcsize(code) :]

    assert "dimensions" in refused(path, patched(0, "<I", 9))
    assert "shape" in refused(path, patched(4, "<Q", 0))
    assert refused(path, patched(4, "<Q", 1 << 50))
    assert "IQ2_XXS" in refused(path, patched(20, "<I", 16))
    assert "9999" in refused(path, patched(20, "<I", 9999))
    assert "not aligned" in refused(path, patched(24, "<Q", 33))
    assert "overlaps" in refused(path, patched(24, "<Q", 0))
    assert "truncated" in refused(path, patched(24, "<Q", 1 << 40))
    twice = gguf_bytes(llama_metadata(), llama_tensors()).replace(b"attn_v", b"attn_k")
    assert "stands twice" in refused(path, twice)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general.architecture": "mamba"}, "mamba"),
        ({"llama.block_count": None}, "block_count"),
        ({"llama.attention.head_count": "four"}, "head_count"),
        ({"llama.attention.head_count": 0}, "head_count"),
        ({"llama.attention.logit_softening": 3.0}, "logit_softening"),
        ({"llama.expert_count": 8}, "expert_count"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "longrope"),
        ({"llama.rope.dimension_count": 2, "llama.attention.key_length": 4}, "dimension_count"),
        ({"split.count": 3}, "split"),
        ({"general.alignment": 3}, "alignment"),
    ],
)
def test_metadata_that_shoal_does_not_understand_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    assert said in refused(tmp_path / "m.gguf", gguf_bytes(llama_metadata(**changes), llama_tensors()))


def test_tensors_that_have_no_place_are_refused_by_name(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"blk.0.ffn_gate_exps.weight": np.ones((2, 2), np.float32)}
    assert "ffn_gate_exps" in refused(tmp_path / "m.gguf", gguf_bytes(llama_metadata(), tensors))


def test_config_of_llama_and_its_scalings(tmp_path: Path) -> None:
    def config(tensors: dict[str, np.ndarray] | None = None, **changes: Any) -> dict[str, Any]:
        path = write_gguf(tmp_path / "m.gguf", llama_metadata(**changes), llama_tensors() | (tensors or {}))
        return GgufNames(read_gguf_header(path)).config

    plain = config()
    assert plain["architectures"] == ["LlamaForCausalLM"]
    assert plain["rms_norm_eps"] == 1e-5
    assert plain["tie_word_embeddings"] is True
    assert plain["rope_scaling"] is None
    assert config({"output.weight": np.ones((4, 16), np.float32)})["tie_word_embeddings"] is False
    assert config(**{"llama.attention.sliding_window": 64})["architectures"] == ["MistralForCausalLM"]
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert config(**scaling)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    scaling = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    }
    assert config(**scaling)["rope_scaling"]["original_max_position_embeddings"] == 32
    factors = config({"rope_freqs.weight": np.array([1.0, 8.0], np.float32)})["rope_scaling"]
    assert factors == {"rope_type": "factors", "factors": [1.0, 8.0]}


@pytest.mark.parametrize(("layers", "scalar"), [(18, 6), (62, 4)])
def test_config_of_gemma(tmp_path: Path, layers: int, scalar: int) -> None:
    metadata = {
        "general.architecture": "gemma3",
        "gemma3.block_count": layers,
        "gemma3.context_length": 128,
        "gemma3.embedding_length": 16,
        "gemma3.feed_forward_length": 24,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": 6,
        "gemma3.attention.value_length": 6,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.attention.sliding_window": 8,
        "gemma3.rope.freq_base": 1e6,
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
    }
    tensors = {"token_embd.weight": np.ones((5, 16), np.float32)}
    config = GgufNames(read_gguf_header(write_gguf(tmp_path / "m.gguf", metadata, tensors))).config
    assert config["query_pre_attn_scalar"] == scalar
    assert config["layer_types"].count("full_attention") == layers // 6
    assert config["layer_types"][5] == "full_attention"
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert read_architecture(config).layers[5].attention.rotary.scaling is not None
    assert read_architecture(config).layers[0].attention.rotary.scaling is None


def test_names_and_transforms(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama_metadata(), llama_tensors())
    tensors = GgufNames(read_gguf_header(path)).tensors
    assert tensors["model.layers.0.self_attn.q_proj.weight"].transform == "unpermute"
    assert tensors["model.layers.0.self_attn.q_proj.weight"].heads == 4
    assert tensors["model.layers.0.self_attn.k_proj.weight"].heads == 2
    assert tensors["model.layers.0.self_attn.v_proj.weight"].transform == "none"
    assert tensors["model.layers.0.post_attention_layernorm.weight"].transform == "none"
    assert tensors["model.embed_tokens.weight"].shape[1] == 16
