"""Loading holds the weights once: anonymous memory peaks at 1.3 times their size or less."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.models.build import gguf_string, gguf_value
from tests.sizes import size

LAYERS = size(2, 18)
HIDDEN, INTERMEDIATE, VOCABULARY, HEADS = 1024, 2816, 32000, 8
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
TILE = struct.pack("<H", 0x3C00) * (1 << 15)  # 1.0 in float16, 0.0078 in bfloat16
FORMS = [
    ("safetensors", "bfloat16"),
    ("shards", "float32"),
    ("gguf", "float32"),
    ("safetensors", "float32"),
    ("shards", "bfloat16"),
    ("gguf", "bfloat16"),
]


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            found[f"{stem}self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        found[f"{stem}mlp.gate_proj.weight"] = found[f"{stem}mlp.up_proj.weight"] = (INTERMEDIATE, HIDDEN)
        found[f"{stem}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        found[f"{stem}input_layernorm.weight"] = found[f"{stem}post_attention_layernorm.weight"] = (HIDDEN,)
    return found | {"model.norm.weight": (HIDDEN,)}


def elements(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def fill(out: BinaryIO, count: int) -> None:
    for _ in range(count // len(TILE)):
        out.write(TILE)
    out.write(TILE[: count % len(TILE)])


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    header, at = {}, 0
    for name, shape in tensors.items():
        end = at + 2 * elements(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)  # as the library does, so that numbers stand where they can be read
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        fill(out, at)


def write_folder(folder: Path, shards: int) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = list(shapes())
    if shards == 1:
        write_shard(folder / "model.safetensors", shapes())
        return folder
    weight_map = {}
    for shard in range(shards):
        part = {name: shapes()[name] for name in names[shard::shards]}
        write_shard(folder / f"model-{shard}.safetensors", part)
        weight_map.update(dict.fromkeys(part, f"model-{shard}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_gguf(path: Path) -> Path:
    """Matrices in Q8_0, whose blocks of 34 bytes hold any bits the tile has; norms in F32."""
    from tests.models.llama_cpp import stored_name

    metadata: dict[str, Any] = {"general.architecture": "llama"}
    for key, value in {
        "block_count": LAYERS,
        "context_length": 2048,
        "embedding_length": HIDDEN,
        "feed_forward_length": INTERMEDIATE,
        "attention.head_count": HEADS,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }.items():
        metadata[f"llama.{key}"] = value
    tensors = {stored_name(name, "llama"): shape for name, shape in shapes().items()}
    table, offset = b"", 0
    for name, shape in tensors.items():
        kind, count = (8, elements(shape) // 32 * 34) if len(shape) == 2 else (0, elements(shape) * 4)
        table += gguf_string(name) + struct.pack("<I", len(shape))
        table += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", kind, offset)
        offset += -(-count // 32) * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(gguf_string(key) + gguf_value(value) for key, value in metadata.items()) + table
    with path.open("wb") as out:
        out.write(head + bytes(-len(head) % 32))
        fill(out, offset)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("form", "dtype"), size(FORMS[:3], FORMS))
def test_peak_of_anonymous_memory(form: str, dtype: str, tmp_path: Path) -> None:
    path = (
        write_gguf(tmp_path / "m.gguf")
        if form == "gguf"
        else write_folder(tmp_path, 1 + 3 * (form == "shards"))
    )
    child = subprocess.run(
        [sys.executable, "-m", "tests.models.test_load_memory", str(path), dtype],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    for file in tmp_path.iterdir():
        file.unlink()
    assert child.returncode == 0, child.stderr
    taken, weights = json.loads(child.stdout)
    assert weights >= sum(map(elements, shapes().values())) * (4 if dtype == "float32" else 2)
    assert 0.9 * weights <= taken <= 1.3 * weights


def anonymous() -> int:
    """Bytes of RssAnon of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/self/status")


def measure(spec: str, dtype: str) -> tuple[int, int]:
    """Anonymous bytes taken at the peak of a load, and the bytes of the weights."""
    import torch

    from shoal.models.files import open_model
    from shoal.models.registry import read_architecture
    from shoal.models.tensors.read import TensorReader
    from shoal.models.tensors.weights import load_weights

    torch.set_num_threads(1)
    torch.ones(4).add(1)
    before, peak, over = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    files = open_model(spec)
    architecture = read_architecture(files.config)
    weights = load_weights(architecture, TensorReader(files), getattr(torch, dtype), "cpu")
    over.set()
    watcher.join()
    return max(peak, anonymous()) - before, weights.bytes


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
