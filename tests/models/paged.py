"""Drives a model through its pages as an engine would: mixed chunks, shuffled pages, one batch a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from shoal.core.plan import EMIT_TOKEN, SAMPLE, StepPlan
from shoal.kernels import native
from shoal.models.files import open_model
from shoal.models.registry import read_architecture
from shoal.models.tensors.compiled import CompiledModel
from shoal.models.tensors.model import Cache, Model
from shoal.models.tensors.read import TensorReader
from shoal.models.tensors.weights import load_weights


def load(
    path: Path, dtype: torch.dtype = torch.float32, *, compiled: bool | None = None
) -> Model | CompiledModel:
    """By default with the compiled kernels, where they were built."""
    files = open_model(str(path))
    architecture = read_architecture(files.config, str(path))
    weights = load_weights(architecture, TensorReader(files), dtype, "cpu")
    if compiled is None:
        compiled = native.available()
    return (
        CompiledModel(architecture, weights, native.Session(2)) if compiled else Model(architecture, weights)
    )


@dataclass
class Run:
    """A sequence: what is known, how much is computed, its pages, the logits of every row so far."""

    known: list[int]
    pages: np.ndarray
    done: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)


def plan_of(step: int, runs: list[Run], rows: list[int], page_size: int) -> StepPlan:
    """The next ``rows[i]`` known tokens of each run; a run with no rows is left out."""
    chosen = [(run, count) for run, count in zip(runs, rows) if count]
    counts = np.array([count for _, count in chosen], dtype=np.int32)
    pages = [run.pages[: -(-(run.done + count) // page_size)] for run, count in chosen]
    sizes = np.array([len(part) for part in pages], dtype=np.int32)
    token = [token for run, count in chosen for token in run.known[run.done : run.done + count]]
    position = [place for run, count in chosen for place in range(run.done, run.done + count)]
    plan = StepPlan(
        step=step,
        token=np.array(token, dtype=np.int32),
        position=np.array(position, dtype=np.int32),
        emit=np.full(len(token), EMIT_TOKEN, dtype=np.int32),
        target=np.full(len(token), SAMPLE, dtype=np.int32),
        sequence=np.arange(len(chosen), dtype=np.int32),
        first_row=(np.cumsum(counts) - counts).astype(np.int32),
        rows=counts,
        first_page=(np.cumsum(sizes) - sizes).astype(np.int32),
        page_count=sizes,
        pages=np.concatenate(pages).astype(np.int32),
    )
    plan.check(page_size)
    return plan


def step(model: Model, cache: Cache, number: int, runs: list[Run], rows: list[int]) -> None:
    """Compute rows; each run keeps their logits."""
    plan = plan_of(number, runs, rows, cache.page_size)
    logits = model.logits(model.forward(model.inputs(plan, cache), cache))
    at = 0
    for run, count in zip(runs, rows):
        run.logits.extend(logits[at : at + count])
        run.done += count
        at += count


def new_runs(prompts: list[list[int]], length: int, page_size: int, rng: np.random.Generator) -> list[Run]:
    """One run a prompt with room for ``length`` tokens, its pages drawn from all over the cache."""
    each = -(-length // page_size)
    ids = rng.permutation(each * len(prompts)).astype(np.int32).reshape(len(prompts), each)
    return [Run(list(prompt), pages) for prompt, pages in zip(prompts, ids)]


def generate(
    model: Model,
    prompts: list[list[int]],
    tokens: int,
    rng: np.random.Generator,
    *,
    page_size: int,
    chunk: int,
) -> list[Run]:
    """Greedy: ``tokens`` more for each prompt, every step all sequences with at most ``chunk`` rows each."""
    lengths = [len(prompt) + tokens for prompt in prompts]
    runs = new_runs(prompts, max(lengths), page_size, rng)
    cache = model.allocate_cache(sum(len(run.pages) for run in runs), page_size)
    for half in (*cache.keys, *cache.values):
        half.fill_(float("nan"))
    number = 0
    while any(len(run.known) < length for run, length in zip(runs, lengths)):
        rows = []
        for run, length in zip(runs, lengths):
            left = len(run.known) - run.done if len(run.known) < length else 0
            rows.append(min(left, int(rng.integers(1, chunk + 1))))
        step(model, cache, number, runs, rows)
        for run, length in zip(runs, lengths):
            if run.done == len(run.known) < length:
                run.known.append(int(run.logits[-1].argmax()))
        number += 1
    return runs
