"""A batch whose prompts are all known is planned: what they share is computed once, and memory sizes batches.

Zheng et al. 2024, "BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and
Throughput-oriented Token Batching", MLSys 2026, arXiv 2412.03594. The public benchmark at a sixteenth of its
size: groups of 16 prompts with 128 tokens in common and 12 of their own, answers of 4 to 64 tokens drawn once
a group, one prompt in ten that shares nothing, all in random order. The KV pool holds 15% of what all
requests need side by side. Every policy runs on the same engine with 128 rows a step.

- *Four policies.* First come, first served without reuse; the same over an LRU prefix cache; sorted prompts
  over the same cache; BatchLLM. Prompt tokens computed, prefixes in memory, total time, equal answers.
- *Two levels.* Eight instructions, each with several documents: one prefix a request against the whole
  forest.
- *Ablation.* Without order by ratio the last answers run alone at the end; without the memory threshold (on
  at most 24 groups with answers twice as long, so that memory is what limits) sequences lose their pages and
  are computed again; with at most 16 sequences side by side steps stay half empty.

Counted claims run on simulated time, on a table in the shape of a real machine; clocked claims run a small
Llama with random weights on this machine.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.core.cost import CostTable
from shoal.engine.build import assemble, prepare
from shoal.experiments.batches import (
    LONGEST,
    PAGE_SIZE,
    Batch,
    Ran,
    Way,
    batch,
    requests,
    simulate,
)
from shoal.experiments.benches import LLAMA as SMALL_LLAMA
from shoal.experiments.claims import Findings, Trial
from shoal.experiments.serving import Arrival, Noting, Served, WallClock, differing, serve
from shoal.reuse.arrival import Arrival as AsTheyCome
from shoal.reuse.batchllm import BatchLLM
from shoal.reuse.forest_order import ForestOrder
from shoal.reuse.one_level import flatten
from shoal.reuse.planning import make_plan
from shoal.reuse.sorted_prompts import SortedPrompts
from shoal.schedule.admission.sarathi_serve import SarathiServe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 128
POOL = 0.15
CLOSE = 1e-4
"""Where the two best logits lie closer than this, float32 products of other shapes may choose the other."""
_FLOOR, _ROW, _OVERHEAD = 3e-3, 0.2e-3, 1e-3
_COUNTS = (1, 8, 16, 24, 32, 48, 64, 128, 256, 512, 1024)
MACHINE = CostTable(
    row_counts=_COUNTS,
    row_seconds=tuple(_OVERHEAD + math.hypot(_FLOOR, _ROW * n) for n in _COUNTS),
    emit_counts=(1, 64),
    emit_seconds=(0.2e-3, 1e-3),
    gathered=1e-7,
    pair=2e-8,
)
"""Simulated: 3 ms to read the weights, 0.2 ms of arithmetic a row, whichever is longer, without a corner."""
LLAMA = SMALL_LLAMA | {
    "max_position_embeddings": 1024,
    # Wide enough that the two best logits seldom lie close together.
    "initializer_range": 0.12,
}

_CHUNKED = {"admission": SarathiServe(rows=ROWS)}
_CACHED = _CHUNKED | {"retention": "lru"}
NONE, LRU, SORTED, PLANNED = "no reuse", "lru", "sorted, lru", "batchllm"
WAYS = {
    NONE: Way(AsTheyCome(), _CHUNKED | {"prefix_reuse": False}),
    LRU: Way(AsTheyCome(), _CACHED),
    SORTED: Way(SortedPrompts(), _CACHED),
    PLANNED: Way(BatchLLM(rows=ROWS), {"policy": BatchLLM(rows=ROWS)}),
}
FOREST = Way(ForestOrder(), _CHUNKED | {"retention": "planned"})


def run(trial: Trial, findings: Findings) -> None:
    groups = 16 if trial.quick else 64
    rng = np.random.default_rng([trial.seed, 3])
    plain = batch(rng, groups)
    runs = _four_policies(plain, findings)
    arrivals = [plain, *(plain.shuffled(rng) for _ in range(3))]
    unordered = _ablation(arrivals, runs[PLANNED], batch(rng, min(groups, 24), answer=32.0), findings)
    _two_levels(batch(rng, groups, instructions=8), findings)
    if not trial.quick:
        with tempfile.TemporaryDirectory() as folder:
            _here(Path(folder), batch(rng, 16), trial, findings)
    findings.needs(
        "1.3 to 10.8 times vLLM 0.6.4 at paper size (6400 prompts of 2000 + 200 tokens)", "simulate"
    )
    shown = {"lru": runs[LRU], "batchllm, groups as they come": unordered, "batchllm": runs[PLANNED]}
    findings.picture(lambda figure: _draw(figure, shown))


def best_saving(batch: Batch) -> int:
    """A(root, 0): the most prompt tokens that one prefix a request can save."""
    return flatten(batch.forest())[1]


def _four_policies(work: Batch, findings: Findings) -> dict[str, Ran]:
    pages = int(POOL * work.need())
    runs = {}
    for name, way in WAYS.items():
        findings.progress(f"simulated: {name}")
        runs[name] = simulate(work, way, pages, MACHINE, watch=name in (LRU, SORTED, PLANNED))
    saved = {name: 1 - ran.prompt / work.tokens for name, ran in runs.items()}
    _exactness("", work, runs[PLANNED], findings)
    findings.counted(
        "share of prompt tokens saved: batchllm, at least sorted", saved[PLANNED], ">=", saved[SORTED]
    )
    findings.counted("share of prompt tokens saved: sorted, at least lru", saved[SORTED], ">=", saved[LRU])
    findings.counted("share of prompt tokens saved: lru, more than no reuse", saved[LRU], ">", saved[NONE])
    findings.counted(
        "prompt tokens saved: batchllm over lru", saved[PLANNED] / saved[LRU], ">=", 1.15, unit="x"
    )
    _prefixes(work, runs, findings)
    _makespan("simulated", {name: ran.seconds for name, ran in runs.items()}, findings.counted)
    differ = sum(ran.tokens != runs[NONE].tokens for ran in runs.values())
    findings.counted("policies whose answers differ from those without reuse", differ, "==", 0)
    common = len(work.examples) * work.common // PAGE_SIZE
    findings.table(
        f"{len(work.prompts):,} prompts, {work.tokens:,} tokens; a pool of {pages} pages",
        ("policy", "prompt tokens computed", "saved", "most prefix pages", "prefix in memory, s", "total, s"),
        [
            (
                name,
                ran.prompt,
                f"{saved[name]:.1%}",
                max(ran.prefixes, default=""),
                ran.lifetime(common) if ran.prefixes else "",
                ran.seconds,
            )
            for name, ran in runs.items()
        ],
    )
    return runs


def _exactness(where: str, work: Batch, ran: Ran, findings: Findings) -> None:
    best = best_saving(work)
    stated = make_plan(BatchLLM(), work.forest()).total
    exact = work.tokens - best
    findings.counted(f"{where}prompt tokens batchllm computed", ran.prompt, "==", exact, unit="tokens")
    findings.counted(f"{where}prompt tokens its plan stated", stated, "==", exact, unit="tokens")
    findings.counted(f"{where}preemptions under batchllm", ran.preemptions, "==", 0)


def _prefixes(work: Batch, runs: dict[str, Ran], findings: Findings) -> None:
    common = len(work.examples) * work.common // PAGE_SIZE
    most = {name: max(runs[name].prefixes) for name in (LRU, PLANNED)}
    stay = {name: runs[name].lifetime(common) for name in (LRU, PLANNED)}
    name = "most pages of prefixes in memory: batchllm, less than lru"
    findings.counted(name, most[PLANNED], "<", most[LRU], unit="pages", baseline=most[LRU])
    name = "mean time of a prefix in memory: batchllm, less than lru"
    findings.counted(name, stay[PLANNED], "<", stay[LRU], unit="s", baseline=stay[LRU])


def _makespan(where: str, seconds: dict[str, float], state: Any) -> None:
    ratio = seconds[NONE] / seconds[PLANNED]
    state(f"{where}: total time, no reuse over batchllm", ratio, ">=", 2, unit="x")
    ratio = seconds[LRU] / seconds[PLANNED]
    state(f"{where}: total time, lru over batchllm", ratio, ">=", 1.2, unit="x")


def _ablation(work: list[Batch], ran: Ran, long: Batch, findings: Findings) -> Ran:
    """Each part switched off, where it matters; returns a run without reordering.

    Args:
        work: the same prompts in several orders: what comes last by chance is the end without reordering.
        ran: the run of the first with everything on.
    """

    def without(where: Batch, sequences: int = 4096, **parameters: Any) -> Ran:
        policy = BatchLLM(rows=ROWS, **parameters)
        way = Way(policy, {"policy": policy})
        return simulate(where, way, int(POOL * where.need()), MACHINE, sequences=sequences)

    findings.progress("simulated: parts switched off")
    unordered, capped = [without(each, reorder=False) for each in work], without(work[0], sequences=16)
    kept, greedy = without(long), without(long, threshold=1.0, reserve=0.0)
    seconds = float(np.mean([each.seconds for each in unordered]))
    valley = float(np.mean([each.valley for each in unordered]))
    name = "total time without order by ratio, mean of four arrivals, over with"
    findings.counted(name, seconds / ran.seconds, ">", 1, unit="x")
    name = "steps at the end without prompts: with order by ratio, fewer than without"
    findings.counted(name, ran.valley, "<", valley, unit="steps", baseline=valley)
    findings.counted(
        "total time without memory threshold, over with", greedy.seconds / kept.seconds, ">", 1, unit="x"
    )
    findings.counted(
        "total time with at most 16 sequences, over with none", capped.seconds / ran.seconds, ">", 1, unit="x"
    )
    findings.table(
        "Ablation",
        ("answers", "variant", "total, s", "steps", "steps at the end without prompts", "preemptions"),
        [
            (answers, name, each.seconds, len(each.ends), each.valley, each.preemptions)
            for answers, name, each in (
                ("4 to 64", "batchllm", ran),
                *(("4 to 64", "groups as they come", each) for each in unordered),
                ("4 to 64", "at most 16 sequences", capped),
                ("8 to 128", "batchllm", kept),
                ("8 to 128", "no memory threshold", greedy),
            )
        ],
    )
    return unordered[0]


def _two_levels(work: Batch, findings: Findings) -> None:
    findings.progress("simulated: two levels")
    pages = int(POOL * work.need())
    ways = {LRU: WAYS[LRU], PLANNED: WAYS[PLANNED], "whole forest": FOREST}
    runs = {name: simulate(work, way, pages, MACHINE) for name, way in ways.items()}
    _exactness("two levels: ", work, runs[PLANNED], findings)
    saved = {name: 1 - ran.prompt / work.tokens for name, ran in runs.items()}
    whole = FOREST.plan(work.forest()).saved / work.tokens
    lost = 100 * (whole - saved[PLANNED])
    findings.counted("two levels: points lost by one prefix a request", lost, "<=", 5, unit="points")
    name = "two levels: share that the plan of the whole forest saves, at least any other"
    findings.counted(name, whole, ">=", max(saved[LRU], saved[PLANNED]))
    differ = sum(ran.tokens != runs[LRU].tokens for ran in runs.values())
    findings.counted("two levels: policies whose answers differ", differ, "==", 0)
    findings.table(
        f"Two levels: {len(work.prompts):,} prompts, a pool of {pages} pages",
        ("policy", "prompt tokens computed", "saved", "preemptions", "total, s"),
        [
            (name, ran.prompt, f"{saved[name]:.1%}", ran.preemptions, ran.seconds)
            for name, ran in runs.items()
        ],
    )


def _here(folder: Path, work: Batch, trial: Trial, findings: Findings) -> None:
    """The four policies on a small Llama with random weights, float32: those that are timed three times."""
    from shoal.engine.tensors.start import model_executor

    (folder / "config.json").write_text(json.dumps(LLAMA))
    head = LLAMA["hidden_size"] // LLAMA["num_attention_heads"]  # type: ignore[operator]
    token = 2 * 4 * LLAMA["num_hidden_layers"] * LLAMA["num_key_value_heads"] * head  # type: ignore[operator]
    settings = {
        "model": str(folder),
        "load_format": "dummy",
        "dtype": "float32",
        # What a policy gains is asked of torch's operators, which every machine has.
        "kernels": "plain",
        "kv_memory": int(POOL * work.need()) * PAGE_SIZE * token,
        "max_model_len": LONGEST,
        "max_num_seqs": 1024,
        "record_margins": True,
        "seed": trial.seed,
    }
    prepared = prepare(WAYS[PLANNED].config(**settings))
    executor = Noting(model_executor(prepared))
    forest, served = work.forest(), dict[str, list[Served]]()
    for turn in range(3):
        for name in list(WAYS)[:: -1 if turn % 2 else 1]:
            if turn and name == SORTED:
                continue
            findings.progress(f"here: {name}")
            way = WAYS[name]
            engine = assemble(way.config(**settings), executor, prepared.model)
            arrivals = [Arrival(request) for request in requests(work, way.plan(forest))]
            served.setdefault(name, []).append(serve(engine, WallClock(), arrivals))
    seconds = {name: float(np.median([each.seconds for each in runs])) for name, runs in served.items()}
    _makespan("here", seconds, findings.clocked)
    compared = [differing(served[NONE][0], runs[0], CLOSE) for runs in served.values()]
    findings.counted(
        "here: answers that differ from those without reuse", sum(d for d, _ in compared), "==", 0
    )
    findings.table(
        f"Here: {len(work.prompts)} prompts; answers that part where two logits were equal: "
        f"{sum(excused for _, excused in compared)}",
        ("policy", "total, s"),
        list(seconds.items()),
    )


def _draw(figure: Figure, runs: dict[str, Ran]) -> None:
    last = max(ran.seconds for ran in runs.values())
    panels = figure.subplots(len(runs), 1, sharex=True, sharey=True)
    for panel, (name, ran) in zip(panels, runs.items()):
        edges = np.concatenate([[0.0], ran.ends])
        answers, prompts = np.array(ran.answer_rows), np.array(ran.prompt_rows)
        panel.stairs(answers + prompts, edges, baseline=answers, fill=True, color="#9ec5e8", label="prompts")
        panel.stairs(answers, edges, fill=True, color="#2b6cb0", label="answers")
        panel.set(ylabel="rows a step", xlim=(0, last), title=name)
    panels[0].legend(frameon=False, loc="upper right", ncols=2)
    panels[-1].set(xlabel="simulated seconds")
