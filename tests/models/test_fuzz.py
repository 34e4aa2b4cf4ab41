"""Structure-aware damage to model files: each is loaded right or refused with a typed error.

The files are tried in worker processes with a bound on memory, so that a crash, a panic in the
tokenizers library, or a hang would be seen as what it is.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import resource
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as safetensors_save

from shoal.core.errors import ShoalError
from tests.models.build import (
    GGUF_CODES,
    gguf_bytes,
    gguf_string,
    gguf_value,
    llama_metadata,
    llama_tensors,
    safetensors_bytes,
)
from tests.sizes import size

COUNT = size(300, 20_000)
SECONDS = 10.0
EXTRA_BYTES = 512 << 20
NUMBERS = [0, 1, 2, 7, 31, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1]
JSON_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x00",
    "x" * 5000,
    [],
    {},
    [[]],
    {"": {}},
    [0] * 300,
    {"type": "BPE"},
]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "tie_word_embeddings": True,
    "eos_token_id": [1, 2],
    "torch_dtype": "float32",
}


def hugging_face_tensors() -> dict[str, np.ndarray]:
    shapes = {"model.embed_tokens": (40, 16), "model.norm": (16,)}
    layer = "model.layers.0."
    for name, rows in {"q": 16, "k": 8, "v": 8, "o": 16}.items():
        shapes[f"{layer}self_attn.{name}_proj"] = (rows, 16)
    shapes |= {f"{layer}mlp.gate_proj": (24, 16), f"{layer}mlp.up_proj": (24, 16)}
    shapes |= {f"{layer}mlp.down_proj": (16, 24), f"{layer}input_layernorm": (16,)}
    shapes[f"{layer}post_attention_layernorm"] = (16,)
    return {f"{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}


def tokenizer_json() -> dict[str, Any]:
    """A byte-level tokenizer.json with every part that a file may have."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate(["<s>", "</s>", *letters, "th", "the"])}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[("t", "h"), ("th", "e")]))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("x", "y")])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def flip(choose: random.Random, raw: bytes) -> bytes:
    """Bytes changed, cut, doubled or put in, anywhere."""
    damaged = bytearray(raw)
    for _ in range(choose.choice([1, 1, 1, 2, 8, 60])):
        at = choose.randrange(len(damaged) or 1)
        kind = choose.randrange(5)
        if kind == 0 and damaged:
            damaged[at] = choose.randrange(256)
        elif kind == 1:
            damaged[at : at + choose.choice([1, 4, 8, 100])] = b""
        elif kind == 2:
            damaged[at:at] = choose.choice([b"\x00", b"\xff" * 8, bytes(64), b"[" * 500, b'"'])
        elif kind == 3:
            damaged[at : at + 8] = struct.pack("<Q", choose.choice(NUMBERS))
        else:
            del damaged[choose.randrange(len(damaged) or 1) :]
    return bytes(damaged)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of a JSON tree stands; long lists and maps are sampled at their ends."""
    yield path
    if isinstance(value, dict):
        keys = list(value)
        for key in keys[:40] + keys[-3:]:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in {*range(min(3, len(value))), *range(max(0, len(value) - 3), len(value))}:
            yield from places(value[index], (*path, index))


def damage_json(choose: random.Random, value: Any) -> bytes:
    """Another value, key, nesting, repetition or absence somewhere in the tree; sometimes broken text."""
    tree = value
    for _ in range(choose.choice([1, 1, 2, 4])):
        tree = json.loads(json.dumps(tree))  # a copy in which no two places are one object
        spots = [spot for spot in places(tree) if spot]
        if not spots:
            break
        spot = choose.choice(spots)
        parent = tree
        for step in spot[:-1]:
            parent = parent[step]
        kind = choose.randrange(6)
        if kind <= 2:
            parent[spot[-1]] = choose.choice(JSON_VALUES)
        elif kind == 3:
            del parent[spot[-1]]
        elif kind == 4 and isinstance(parent, dict):
            parent[choose.choice(["x", "", "rope_parameters", "__metadata__", "added_tokens"])] = (
                choose.choice([choose.choice(JSON_VALUES), parent[spot[-1]]])
            )
        else:
            parent[spot[-1]] = [parent[spot[-1]]] * choose.choice([1, 2, 50])
    text = json.dumps(tree).encode()
    if choose.random() < 0.1:
        deep = choose.choice([50, 5000, 100_000])
        text = text.replace(b"null", b"[" * deep + b"]" * deep, 1)
    return flip(choose, text) if choose.random() < 0.2 else text


def damage_gguf(choose: random.Random) -> bytes:
    """A value of another type, a wrong count, length, offset, shape or alignment, a cut, a repetition."""
    metadata, tensors = llama_metadata(), llama_tensors()
    kind = choose.randrange(6)
    if kind == 0:
        key = choose.choice(list(metadata))
        metadata[key] = choose.choice(
            [
                0,
                1,
                2**31,
                -5,
                0.0,
                float("nan"),
                float("inf"),
                True,
                "",
                "x",
                [],
                ["a", "a"],
                np.zeros(3, np.int32),
            ]
        )
    elif kind == 1:
        del metadata[choose.choice(list(metadata))]
    elif kind == 2:
        name = choose.choice(list(tensors))
        tensors[
            choose.choice([name, "blk.0.other.weight", "blk.99999.attn_q.weight", "", "rope_freqs.weight"])
        ] = np.full(choose.choice([(1,), (16,), (16, 16), (2, 2, 2), (1, 1, 1, 1)]), np.nan, np.float32)
    raw = bytearray(gguf_bytes(metadata, tensors))
    if kind == 3:
        struct.pack_into("<Q", raw, choose.choice([8, 16]), choose.choice(NUMBERS))
    elif kind == 4:
        name = gguf_string(choose.choice(list(tensors)))
        at = raw.index(name) + len(name)
        offset, code = choose.choice([(0, "I"), (4, "Q"), (12, "Q"), (20, "I"), (24, "Q"), (-len(name), "Q")])
        limit = 1 << (8 * struct.calcsize(code))
        struct.pack_into(f"<{code}", raw, at + offset, choose.choice(NUMBERS) % limit)
    elif kind == 5:
        key = choose.choice(list(metadata))
        at = raw.index(gguf_string(key)) + len(gguf_string(key))
        wrong = choose.choice([0, 7, 8, 9, 12, 13, 99])
        body = gguf_value(metadata[key])[4:] if choose.random() < 0.5 else bytes(8)
        deep = struct.pack("<IQ", 9, 1) * choose.choice([0, 3, 400])
        raw[at : at + 4 + choose.choice([0, len(body)])] = struct.pack("<I", wrong) + deep + body
        assert set(GGUF_CODES) <= set(range(13))
    return flip(choose, bytes(raw)) if choose.random() < 0.3 else bytes(raw)


def damage_safetensors(choose: random.Random) -> bytes:
    raw = safetensors_save(hugging_face_tensors())
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    kind = choose.randrange(3)
    if kind == 0:
        return flip(choose, raw)
    whole = safetensors_bytes(damage_json(choose, header), data)
    if kind == 1:
        return whole
    return struct.pack("<Q", choose.choice([*NUMBERS, length + 1, length - 1])) + whole[8:]


def write_case(folder: Path, seed: int) -> str:
    """One damaged model under ``folder``; returns what to open."""
    choose = random.Random(seed)
    for file in folder.iterdir():
        file.unlink()
    kind = ["gguf", "safetensors", "config", "tokenizer"][seed % 4]
    if kind == "gguf":
        (folder / "model.gguf").write_bytes(damage_gguf(choose))
        return str(folder / "model.gguf")
    makers: dict[str, tuple[str, Callable[[], bytes]]] = {
        "safetensors": ("model.safetensors", lambda: damage_safetensors(choose)),
        "config": ("config.json", lambda: damage_json(choose, CONFIG)),
        "tokenizer": ("tokenizer.json", lambda: damage_json(choose, tokenizer_json())),
    }
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(safetensors_save(hugging_face_tensors()))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    name, make = makers[kind]
    (folder / name).write_bytes(make())
    return str(folder)


def load_all(spec: str) -> None:
    """Everything a start does with a model's files."""
    import torch

    from shoal.core.errors import CallerError
    from shoal.models.chat import render
    from shoal.models.files import open_model
    from shoal.models.registry import read_architecture
    from shoal.models.tensors.read import TensorReader
    from shoal.models.tensors.weights import load_weights

    files = open_model(spec)
    architecture = read_architecture(files.config, spec)
    tokenizer = files.tokenizer()
    ids = tokenizer.encode("the cat sat on the mat, 12 times\n\n<s> ☃")
    tokenizer.decode(ids)
    assert len(files.fingerprint()) == 64
    assert all(number >= 0 for number in files.end_ids)
    if files.chat_template is not None:
        with contextlib.suppress(CallerError):
            render(files.chat_template, [{"role": "user", "content": "x"}])
    weights = load_weights(architecture, TensorReader(files), torch.float32, "cpu")
    assert set(weights.tensors) == {parameter.name for parameter in architecture.parameters()}


def worker(connection: Connection, folder: str) -> None:
    """Answers each seed with "" or with what went wrong."""
    import torch

    torch.set_num_threads(1)
    load_all(write_good(Path(folder)))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, used + EXTRA_BYTES))
    while (seed := connection.recv()) is not None:
        spec, began = write_case(Path(folder), seed), time.monotonic()
        try:
            load_all(spec)
            said = "loaded"
        except ShoalError as error:
            said = "refused"
            if "\n" in str(error) or not error.remedy:
                said = f"not one line with a remedy: {error!s:.300}"
        except BaseException:
            said = traceback.format_exc()[-2000:]
        if time.monotonic() - began > SECONDS:
            said = f"took {time.monotonic() - began:.1f} s"
        connection.send(said)


def write_good(folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(safetensors_save(hugging_face_tensors()))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    return str(folder)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_damaged_files_are_loaded_right_or_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker, args=(theirs, str(tmp_path)), daemon=True)
    process.start()
    theirs.close()
    first = random.SystemRandom().randrange(1 << 40) * 4
    seen: dict[str, int] = {}
    for seed in range(first, first + COUNT):
        ours.send(seed)
        try:
            said = ours.recv() if ours.poll(60 + SECONDS) else "hangs"
        except EOFError:
            process.join()
            said = f"the process died ({process.exitcode})"
        seen[said] = seen.get(said, 0) + 1
        assert said in ("loaded", "refused"), f"seed {seed}: {said}"
    ours.send(None)
    process.join(30)
    assert process.exitcode == 0
    assert seen["loaded"] > COUNT // 100
    assert seen["refused"] > COUNT // 3
    print(seen)
