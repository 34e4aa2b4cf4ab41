"""Equal to ``transformers`` in float32, for every architecture and variant, from a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.kernels import native
from shoal.models.tensors.model import Model
from tests.models.paged import Run, generate, load, new_runs, step
from tests.models.tiny import SIZES, VARIANTS, Variant, randomise, reference, save
from tests.sizes import size

LOGITS = 1e-4
PROMPTS, TOKENS = size(6, 20), size(24, 64)


def prompts_of(rng: np.random.Generator, count: int = PROMPTS) -> list[list[int]]:
    return [rng.integers(3, 160, int(rng.integers(1, 40))).tolist() for _ in range(count)]


def reference_logits(model: torch.nn.Module, runs: list[Run]) -> list[torch.Tensor]:
    """Logits of all computed rows; padding comes after every row that is looked at, so it is not seen."""
    ids = torch.zeros(len(runs), max(run.done for run in runs), dtype=torch.int64)
    for row, run in enumerate(runs):
        ids[row, : run.done] = torch.tensor(run.known[: run.done])
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return [logits[row, : run.done].float() for row, run in enumerate(runs)]


def compare(
    runs: list[Run], expected: list[torch.Tensor], prompts: list[list[int]], within: float = LOGITS
) -> int:
    """Logits of every row and every greedy choice; returns how many choices were near-ties."""
    excused = 0
    for run, wanted, prompt in zip(runs, expected, prompts):
        found = torch.stack(run.logits)
        assert (found - wanted).abs().max() <= within
        for place in range(len(prompt), len(run.known)):
            best = wanted[place - 1].topk(2)
            if run.known[place] != int(best.indices[0]):
                assert best.values[0] - best.values[1] <= LOGITS
                excused += 1
                break
    return excused


@pytest.mark.parametrize("kernels", ["compiled", "plain"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_greedy_tokens_and_logits_equal_the_reference(
    variant: Variant, kernels: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    if kernels == "compiled" and not native.available():
        pytest.skip("the compiled kernels were not built")
    theirs = reference(variant)
    ours = load(save(theirs, tmp_path), compiled=kernels == "compiled")
    rng = np.random.default_rng()
    prompts = prompts_of(rng)
    runs = generate(ours, prompts, TOKENS, rng, page_size=int(rng.choice([4, 16])), chunk=11)
    excused = compare(runs, reference_logits(theirs, runs), prompts)
    figure(f"{excused} near-ties among {len(prompts)} rows of {TOKENS} tokens")


def test_chunks_page_sizes_and_company_do_not_matter(tmp_path: Path) -> None:
    """The same known tokens in other chunks, on other pages, in other company: the same logits."""
    gemma = next(variant for variant in VARIANTS if variant.name == "gemma3-plain")
    model = load(save(reference(gemma), tmp_path))
    rng = np.random.default_rng()
    texts = prompts_of(rng, 5)
    expected = [forced(model, [text], rng, page_size=16, chunk=1000)[0] for text in texts]
    for page_size, chunk in ((4, 1), (4, 7), (16, 5), (1, 1000)):
        found = forced(model, texts, rng, page_size=page_size, chunk=chunk)
        for one, other in zip(expected, found):
            assert (one - other).abs().max() <= LOGITS / 2


def forced(
    model: Model, texts: list[list[int]], rng: np.random.Generator, *, page_size: int, chunk: int
) -> list[torch.Tensor]:
    """Logits of every position of known texts, (tokens, vocabulary) each."""
    runs = new_runs(texts, max(map(len, texts)), page_size, rng)
    cache = model.allocate_cache(sum(len(run.pages) for run in runs), page_size)
    while any(run.done < len(run.known) for run in runs):
        rows = [min(len(run.known) - run.done, int(rng.integers(1, chunk + 1))) for run in runs]
        step(model, cache, 0, runs, rows)
    return [torch.stack(run.logits) for run in runs]


def test_a_prompt_longer_than_a_piece(tmp_path: Path) -> None:
    gemma = next(variant for variant in VARIANTS if variant.name == "gemma3-plain")
    theirs = reference(gemma)
    model = load(save(theirs, tmp_path))
    rng = np.random.default_rng()
    runs = new_runs([rng.integers(3, 160, length).tolist() for length in (400, 300)], 400, 16, rng)
    step(model, model.allocate_cache(50, 16), 0, runs, [400, 300])
    for run, wanted in zip(runs, reference_logits(theirs, runs)):
        assert (torch.stack(run.logits) - wanted).abs().max() <= LOGITS


def test_a_run_reads_pages_that_another_writes_in_the_same_step(tmp_path: Path) -> None:
    variant = next(variant for variant in VARIANTS if variant.name == "mistral-window")
    theirs = reference(variant)
    model = load(save(theirs, tmp_path))
    rng = np.random.default_rng()
    shared, tails = rng.integers(3, 160, 16).tolist(), rng.integers(3, 160, (2, 5)).tolist()
    first, second = new_runs([shared + tails[0], shared + tails[1]], 24, 4, rng)
    second.pages[:4] = first.pages[:4]
    second.done = 16
    cache = model.allocate_cache(12, 4)
    step(model, cache, 0, [first, second], [21, 5])
    wanted = reference_logits(theirs, [first, second])
    assert (torch.stack(first.logits) - wanted[0]).abs().max() <= LOGITS
    assert (torch.stack(second.logits) - wanted[1][16:]).abs().max() <= LOGITS


def test_bfloat16_follows_the_reference(tmp_path: Path) -> None:
    variant = next(variant for variant in VARIANTS if variant.name == "llama-tied")
    theirs = reference(variant).to(torch.bfloat16)
    model = load(save(theirs, tmp_path), torch.bfloat16)
    rng = np.random.default_rng()
    runs = generate(model, prompts_of(rng, 4), 8, rng, page_size=16, chunk=32)
    for run, wanted in zip(runs, reference_logits(theirs, runs)):
        found = torch.stack(run.logits)
        assert torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1] > 0.999


def test_the_text_half_of_a_vision_model(tmp_path: Path) -> None:
    import transformers

    text = SIZES | {"head_dim": 16, "sliding_window": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, tie_word_embeddings=True
    )
    theirs = randomise(transformers.Gemma3ForConditionalGeneration(config))
    ours = load(save(theirs, tmp_path))
    rng = np.random.default_rng()
    runs = generate(ours, prompts_of(rng, 3), 8, rng, page_size=4, chunk=5)
    compare(runs, reference_logits(theirs, runs), [run.known for run in runs])
