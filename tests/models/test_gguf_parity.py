"""Models from GGUF files in llama.cpp's layout equal the ones they were written from."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from shoal.models.files import open_model
from shoal.models.gguf import read_gguf_header
from shoal.models.tensors.read import TensorReader
from tests.models import llama_cpp
from tests.models.paged import generate, load
from tests.models.test_parity import compare, prompts_of, reference_logits
from tests.models.tiny import VARIANTS, Variant, reference, save
from tests.sizes import size

# What a GGUF file cannot say: other YaRN constants, windows in some layers of Qwen, Gemma's scalar.
UNWRITABLE = {
    "llama-yarn-full",
    "llama-yarn-factor",
    "qwen2-window",
    "qwen2-layer-types",
    "qwen3-window",
    "gemma3-scalar",
}


def writable(variant: Variant) -> Variant:
    """Gemma's queries are scaled by the head size in every file but those of 62 layers."""
    if variant.architecture != "Gemma3":
        return variant
    return replace(variant, fields=variant.fields | {"query_pre_attn_scalar": variant.fields["head_dim"]})


WRITABLE = [writable(variant) for variant in VARIANTS if variant.name not in UNWRITABLE]


@pytest.mark.parametrize("variant", WRITABLE, ids=lambda variant: variant.name)
def test_tensors_logits_and_greedy_tokens(variant: Variant, tmp_path: Path) -> None:
    theirs = reference(variant)
    path = llama_cpp.write(theirs, variant.architecture, tmp_path / "model.gguf")
    reader = TensorReader(open_model(str(path)))
    originals = theirs.state_dict()
    for name, info in reader.tensors.items():
        found = torch.empty(info.shape)
        reader.fill(name, 0, found)
        torch.testing.assert_close(found, originals[name], atol=1e-6, rtol=0)
        if info.transform != "minus_one":
            assert torch.equal(found, originals[name])
    rng = np.random.default_rng()
    prompts = prompts_of(rng, size(3, 20))
    runs = generate(load(path), prompts, size(12, 64), rng, page_size=16, chunk=17)
    compare(runs, reference_logits(theirs, runs), prompts)


def test_all_unwritable_variants_exist() -> None:
    assert {variant.name for variant in VARIANTS} >= UNWRITABLE


@pytest.mark.parametrize("stored", ["F16", "BF16", "Q8_0", "Q5_0", "Q4_0"])
@pytest.mark.parametrize("name", ["llama-plain", "gemma3-plain"])
def test_quantised_matrices(name: str, stored: str, tmp_path: Path) -> None:
    variant = next(variant for variant in VARIANTS if variant.name == name)
    kind = gguf.GGMLQuantizationType[stored]
    theirs = reference(variant)
    path = llama_cpp.write(theirs, variant.architecture, tmp_path / "model.gguf", kind)
    with torch.no_grad():
        for parameter, values in theirs.named_parameters():
            if values.ndim == 2 and ".layers." in parameter:
                values.copy_(torch.from_numpy(rounded(values.numpy(), kind)))
    rng = np.random.default_rng()
    prompts = prompts_of(rng, 3)
    runs = generate(load(path), prompts, 8, rng, page_size=16, chunk=17)
    compare(runs, reference_logits(theirs, runs), prompts)


def rounded(values: np.ndarray, kind: Any) -> np.ndarray:
    """To the stored type and back by the ``gguf`` package; rows keep their place, so order is no matter."""
    return np.array(dequantize(gguf.quants.quantize(values, kind), kind), np.float32)


def demo_in_transformers(path: Path) -> Any:
    """The demo model in ``transformers``: values by the ``gguf`` package, names written out here."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        query_pre_attn_scalar=256,
        max_position_embeddings=32768,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    )
    model = Gemma3ForCausalLM(config)
    header = read_gguf_header(path)
    data = np.memmap(path, np.uint8, "r")
    state = {}
    for name in model.state_dict():
        if name == "lm_head.weight":
            continue
        tensor = header.tensors[llama_cpp.stored_name(name, "gemma3")]
        raw = data[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape[0], -1)
        values = dequantize(raw, gguf.GGMLQuantizationType[tensor.stored]).reshape(tensor.shape)
        state[name] = torch.from_numpy(values - 1 if name.endswith("norm.weight") else np.array(values))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    return model.eval()


PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time there was a",
    "Photosynthesis is the process by which",
    "1, 2, 3, 4, 5,",
    "Liebe Grüße aus Köln, wo es heute",
    "日本の首都は",
    "The quick brown fox",
    "Review: the food was cold and late. Sentiment:",
    "import numpy as np\n\nx = np.",
    "Dear Sir or Madam,\n\nI am writing",
    "Q: What is the boiling point of water?\nA:",
    "El perro corre por el",
    "In 1969, humans first",
    "<html>\n<head>\n<title>",
    "To be, or not to be, that is",
    "The three primary colours are",
    "Ingredients: 2 eggs, 100 g flour,",
    "Москва — столица",
    "According to the theory of relativity,",
]


@pytest.mark.slow
def test_the_demo_model(tmp_path: Path) -> None:
    files = open_model("demo")
    theirs = demo_in_transformers(files.path)
    paths = [files.path, *size([], [tmp_path / "folder"])]
    prompts = [files.tokenizer().encode(text).tolist() for text in PROMPTS[: size(2, 20)]]
    rng = np.random.default_rng()
    for path in paths:
        if path != files.path:
            save(theirs, path)
        runs = generate(load(path), prompts, size(16, 32), rng, page_size=16, chunk=64)
        # Its logits reach 40, and its sums have 2,048 terms: float32 in another order is that far off.
        excused = compare(runs, reference_logits(theirs, runs), prompts, within=4e-4)
        print(f"{path.name}: {excused} near-ties among {len(prompts)} rows")
    shutil.rmtree(tmp_path)
