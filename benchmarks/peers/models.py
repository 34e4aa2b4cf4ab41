"""The two models in the form that each contestant reads, made once under ``out/peers/models``."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.models import llama135m
from benchmarks.peers.environments import ENVIRONMENTS, HOME, Unavailable, clean
from benchmarks.peers.roster import GEMMA, LLAMA
from shoal.models.demo import demo_model
from shoal.models.files import open_model
from shoal.models.tensors.read import TensorReader

GEMMA_BEGIN = 2
"""Gemma's BOS id, with which each of its prompts begins."""
FOLDER = HOME / "models"
_GGUF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def provide(model: str, form: str) -> Path:
    """Where ``model`` lies as a Hugging Face folder, a GGUF file, or OpenVINO's IR.

    Raises:
        Unavailable: the form cannot be made.
    """
    if form == "folder":
        return _once(FOLDER / model, llama135m if model == LLAMA else _gemma_folder)
    if form == "ir":
        return _once(FOLDER / f"{model}-ir", lambda target: _export_ir(provide(model, "folder"), target))
    if model == GEMMA:
        return demo_model()
    return _once(FOLDER / f"{model}.gguf", lambda target: write_gguf(provide(model, "folder"), target))


def _once(path: Path, make: Callable[[Path], object]) -> Path:
    """Made whole under another name first, so that a cut run leaves no half model."""
    if not path.exists():
        part = path.with_name(f".{path.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        make(part)
        part.replace(path)
    return path


def _gemma_folder(folder: Path) -> None:
    """The demo extra's 4-bit file dequantised: every bf16 contestant computes with the same numbers."""
    files = open_model(str(demo_model()))
    reader = TensorReader(files)
    tensors = {name: torch.empty(info.shape, dtype=torch.bfloat16) for name, info in reader.tensors.items()}
    for name, tensor in tensors.items():
        reader.fill(name, 0, tensor)
    config = {name: value for name, value in files.config.items() if value is not None}
    _write_folder(folder, config | {"torch_dtype": "bfloat16", "bos_token_id": GEMMA_BEGIN}, tensors)


def _write_folder(folder: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_gguf(folder: Path, path: Path) -> None:
    """A Llama folder as a bf16 GGUF file without a tokenizer, by the rules of llama.cpp's converter."""
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.float().numpy()
        if ".q_proj." in name or ".k_proj." in name:
            # The converter interleaves the two halves of each head.
            count = heads if ".q_proj." in name else kv_heads
            values = (
                values.reshape(count, 2, len(values) // count // 2, -1).swapaxes(1, 2).reshape(values.shape)
            )
        kind = gguf.GGMLQuantizationType.BF16 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(_gguf_name(name), _stored(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _stored(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    return gguf.quants.quantize(np.ascontiguousarray(values), kind)


def _gguf_name(name: str) -> str:
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in top:
        return top[name]
    _, _, layer, rest = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_GGUF_LAYER[rest]}.weight"


def _export_ir(folder: Path, target: Path) -> None:
    """By optimum's own exporter, in the peer's environment."""
    command = [str(ENVIRONMENTS["openvino"].folder / "bin" / "optimum-cli"), "export", "openvino"]
    command += [
        "--model",
        str(folder),
        "--task",
        "text-generation-with-past",
        "--weight-format",
        "fp16",
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=clean() | {"HF_HUB_OFFLINE": "1"})
    if done.returncode or not (target / "openvino_model.xml").is_file():
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Unavailable(f"optimum-cli: {(lines or ['no word'])[-1][:300]}")
