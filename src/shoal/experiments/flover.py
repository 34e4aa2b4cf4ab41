"""Requests at any depth share one step, and join and leave at every token, over places side by side.

Yao et al. 2023, "Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference",
HiPC 2023, arXiv 2305.13484. Every policy runs on the same engine. Counted claims run on simulated time with
steps of equal length; clocked claims run a Llama of 88 million random weights on this machine.

- *Poisson table.* 32 requests of 512 tokens come at random, 11.33 ms a step (5.8 s for one alone), one may
  join in each step: how many steps there are in all, and how much of 32 runs in each. The engine must take
  exactly the steps that arithmetic says, and the paper's own draws must fit the spread of many draws.
- *Reordering.* 32 requests of uniform lengths begin together. Fused over the window as it lies, a step
  computes the holes that ends have left; compaction closes them by the fewest moves. The rows it saves are
  counted, the time on the clock.
- *Baselines.* Static batches, which wait for their longest member; and one request after the other.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.core.policy import Admission
from shoal.core.request import Request
from shoal.engine.engine import Engine
from shoal.engine.priced import run_to_end
from shoal.experiments.benches import request
from shoal.experiments.claims import Findings, Trial
from shoal.experiments.fusion import Watched, fused_rows, iterations
from shoal.experiments.places import LARGE, PROMPT, REQUESTS, SMALL, STEP, TOKENS, Real, simulated
from shoal.experiments.serving import Arrival, differing, serve
from shoal.memory.flover import Flover
from shoal.memory.slots import SlotMemory, compaction
from shoal.schedule.admission.static import Static

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAPS = (20, 100, 500, 1000, 5000)
"""Milliseconds between two arrivals, on average."""
PAPER = (557, 748, 1537, 2621, 10694)
"""Steps of the paper's one draw at each gap."""
REFERENCE = ((568, 9), (787, 48), (1883, 238), (3246, 469), (9890, 939))
"""Mean and standard deviation of an independent simulation of the same process."""
DRAWS = 2000
COUNTS = (1, 2, 4, 8, 16, 32)
PAPER_CURVE = (1.0, 1.9, 3.0, 3.9, 7.5, 16.7)
"""Throughput over FasterTransformer with so many requests, LLaMA 65B."""
CLOSE = 1e-4
"""Where the two best logits lie closer than this, float32 products of other shapes may choose the other."""


def run(trial: Trial, findings: Findings) -> None:
    draws = _poisson(trial, findings)
    window = _reordering(trial, findings)
    _static(trial, findings)
    _invariants(trial, findings)
    _least_moves(trial, findings)
    curve: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        _same_answers(Real(Path(folder), SMALL, trial), trial, findings)
        if not trial.quick:
            real = Real(Path(folder), LARGE, trial)
            curve = _throughput(real, findings)
            _reordering_here(real, trial, findings)
    findings.picture(lambda figure: _draw(figure, draws, window, curve))


# Poisson table


def _poisson(trial: Trial, findings: Findings) -> list[tuple[float, float]]:
    """(mean, standard deviation) of the steps at each gap."""
    rng = np.random.default_rng([trial.seed, 0])
    found, rows, wrong, apart = [], [], 0, 0
    ran = GAPS[:3] if trial.quick else GAPS
    for gap, paper, (mean, deviation) in zip(GAPS, PAPER, REFERENCE):
        findings.progress(f"arrivals every {gap:,} ms")
        times = np.cumsum(rng.exponential(gap / 1e3, (DRAWS, REQUESTS)), axis=1)
        steps = iterations(times, TOKENS, STEP)
        found.append((float(steps.mean()), float(steps.std())))
        taken: object = "not run"
        if gap in ran:
            taken, fused = _fused(times[0])
            wrong += taken != steps[0]
            apart += abs(fused - REQUESTS * TOKENS)
        overlap = 100 * TOKENS / found[-1][0]
        rows.append(
            (gap, *found[-1], f"{mean} ± {deviation}", paper, f"{overlap:.1f}%", taken, int(steps[0]))
        )
    findings.table(
        f"Steps for {REQUESTS} requests of {TOKENS} tokens, one joining a step",
        ("gap, ms", "mean", "deviation", "reference", "paper", "overlap", "engine", "arithmetic"),
        rows,
    )
    far = max(abs(mean - known) / spread for (mean, _), (known, spread) in zip(found, REFERENCE))
    findings.counted("Poisson: mean steps off the reference, in its deviations", far, "<=", 1)
    far = max(abs(paper - mean) / spread for (mean, spread), paper in zip(found, PAPER))
    findings.counted("Poisson: the paper's draws off these means, in deviations", far, "<=", 3)
    findings.counted("Poisson: gaps at which engine and arithmetic take other steps", wrong, "==", 0)
    findings.counted("Poisson: tokens off steps times overlap times 32", apart, "==", 0)
    return found


def _fused(times: Any) -> tuple[int, int]:
    """Steps that the engine takes, and the sequences in them together."""
    engine, clock = simulated(Flover(joins=1))
    arrivals = [(float(at), request(f"r{i}", np.arange(1, 1 + PROMPT), TOKENS)) for i, at in enumerate(times)]
    steps = run_to_end(engine, clock, arrivals, record=True).steps
    return len(steps), sum(step.shape.runs for step in steps)


# Reordering


def _reordering(trial: Trial, findings: Findings) -> dict[str, list[int]]:
    """Rows of every step of one draw, without and with compaction."""
    rng = np.random.default_rng([trial.seed, 1])
    most = 128 if trial.quick else TOKENS
    lengths = rng.integers(1, most + 1, (400, REQUESTS))
    without, rows = fused_rows(lengths)
    ratio = without / rows
    items = [request(f"r{i}", rng.integers(1, 99, PROMPT), int(n)) for i, n in enumerate(lengths[0])]
    spans, moved, interior = {}, 0, 0
    for name, compact in (("without", False), ("with", True)):
        findings.progress(f"reordering: {name} compaction")
        engine, clock = simulated(Flover(compact=compact), watch=True)
        serve(engine, clock, map(Arrival, items))
        watched = engine.executor
        assert isinstance(watched, Watched)
        assert isinstance(engine.memory, SlotMemory)
        spans[name], moved, interior = watched.span, engine.memory.moved, watched.interior
    wrong = abs(sum(spans["without"]) - int(without[0])) + abs(sum(spans["with"]) - int(rows[0]))
    name = f"reordering: rows fused without over with compaction, mean of {len(ratio)} draws"
    findings.counted(name, ratio.mean(), ">=", 1.6, unit="x", baseline=1.7)
    findings.counted("reordering: rows of the engine off arithmetic", wrong, "==", 0)
    findings.counted("reordering: moves, at most the ends in the middle", moved, "<=", interior)
    findings.counted("reordering: moves, so that it means something", moved, ">=", 1)
    return spans


def _least_moves(trial: Trial, findings: Findings) -> None:
    """Random patterns of up to twelve places against a look at every window."""
    rng = np.random.default_rng([trial.seed, 2])
    more = broken = 0
    for _ in range(1000 if trial.quick else 20_000):
        used = rng.random(rng.integers(1, 13)) < rng.random()
        lo, moves = compaction(used)
        count = int(used.sum())
        windows = (int(used[i : i + count].sum()) for i in range(len(used) - count + 1))
        more += len(moves) > count - max(windows)
        rows = np.arange(len(used))
        rows[moves[:, 1]] = moves[:, 0]
        kept = np.setdiff1d(np.arange(len(used)), moves[:, 1])
        side_by_side = np.array_equal(np.sort(rows[lo : lo + count]), np.flatnonzero(used))
        broken += not side_by_side or not np.array_equal(rows[kept], kept)
    findings.counted("compaction: patterns with more moves than the best window needs", more, "==", 0)
    findings.counted("compaction: patterns not side by side, or with other rows touched", broken, "==", 0)


# Static batches


def _static(trial: Trial, findings: Findings) -> None:
    """A queue, and a stream at which half the places are used; answers of uniform length."""
    rng = np.random.default_rng([trial.seed, 3])
    most, count = (64, 128) if trial.quick else (TOKENS, 192)
    lengths = rng.integers(1, most + 1, count)
    items = [request(f"r{i}", rng.integers(1, 99, PROMPT), int(n)) for i, n in enumerate(lengths)]
    apart = STEP * (most + 1) / 2 / (REQUESTS / 2)
    times = np.cumsum(rng.exponential(apart, count))
    policies: dict[str, Admission] = {"static batches": Static(batch=REQUESTS), "fused": Flover()}
    steps, latency = {}, {}
    for name, policy in policies.items():
        findings.progress(f"static batches: {name}")
        engine, clock = simulated(policy)
        steps[name] = len(run_to_end(engine, clock, [(0.0, item) for item in items], record=True).steps)
        engine, clock = simulated(policy)
        served = run_to_end(engine, clock, list(zip(times.tolist(), items))).finished
        latency[name] = float(np.mean([answer.ended - answer.arrived for answer in served]))
    findings.table(
        f"{count} requests, answers of 1 to {most} tokens, {REQUESTS} places",
        ("policy", "steps for a queue", "mean latency of a stream, s"),
        [(name, steps[name], latency[name]) for name in policies],
    )
    findings.counted(
        "queue: steps of static batches over fused",
        steps["static batches"] / steps["fused"],
        ">=",
        1.3,
        unit="x",
    )
    findings.counted(
        "stream: mean latency of static batches over fused",
        latency["static batches"] / latency["fused"],
        ">=",
        1.3,
        unit="x",
    )


# What is promised at any load


def _invariants(trial: Trial, findings: Findings) -> None:
    """Prompts of several chunks, answers of any length, a stream that fills all places now and then."""
    rng = np.random.default_rng([trial.seed, 4])
    count = 28 if trial.quick else 200
    items = [
        request(f"r{i}", rng.integers(1, 99, rng.integers(1, 60)), int(rng.integers(1, 50)))
        for i in range(count)
    ]
    times = np.cumsum(rng.exponential(4 * STEP, count))
    arrivals = [Arrival(item, float(at)) for item, at in zip(items, times)]
    alone = serve(*simulated(Flover(), sequences=1, arithmetic=True), arrivals)
    differ = outside = doubled = late = loose = 0
    for policy in (Flover(rows=16), Flover(joins=1, rows=16), Flover(rows=16, compact=False)):
        findings.progress(f"invariants: {policy!r}")
        engine, clock = simulated(policy, sequences=8, arithmetic=True, watch=True)
        differ += differing(alone, serve(engine, clock, arrivals, check=True))[0]
        watched = engine.executor
        assert isinstance(watched, Watched)
        outside, doubled = outside + watched.outside, doubled + watched.doubled
        late = max(late, *watched.joined_after())
        if policy.compact:
            loose += sum(span > held for span, held in zip(watched.span, watched.held))
    findings.counted("answers that differ from those alone", differ, "==", 0)
    findings.counted("steps from the end of a prompt to the next token, at most", late, "<=", 1)
    findings.counted("places read outside the window", outside, "==", 0)
    findings.counted("steps with two sequences in one place", doubled, "==", 0)
    findings.counted("steps with a hole in spite of compaction", loose, "==", 0)


def _same_answers(real: Real, trial: Trial, findings: Findings) -> None:
    """The same on tensors, where moves copy K/V and attention reads places where they lie."""
    rng = np.random.default_rng([trial.seed, 5])
    findings.progress("answers of a small Llama")
    items = [
        request(f"r{i}", rng.integers(1, 99, rng.integers(1, 40)), int(rng.integers(2, 24)))
        for i in range(16 if trial.quick else 48)
    ]
    arrivals = [Arrival(item) for item in items]
    alone = serve(*real.engine(Flover(), sequences=1), arrivals)
    engine, clock = real.engine(Flover(), sequences=16)
    together = serve(engine, clock, arrivals, check=True)
    assert isinstance(engine.memory, SlotMemory)
    differ, excused = differing(alone, together, CLOSE)
    findings.counted("float32 Llama: answers that differ from those alone", differ, "==", 0)
    findings.counted("float32 Llama: moves there, so that it means something", engine.memory.moved, ">=", 1)
    findings.table(
        f"A Llama of {real.parameters / 1e6:.1f} million weights, float32",
        ("requests", "tokens", "moves", "near-ties excused"),
        [(len(items), sum(map(len, together.tokens.values())), engine.memory.moved, excused)],
    )


# On the clock


def _throughput(real: Real, findings: Findings) -> dict[int, float]:
    """{requests: throughput fused over one after the other}; the most telling one three times."""
    rng = np.random.default_rng(0)
    found, rows = {}, []
    for count in COUNTS:
        items = [request(f"r{i}", rng.integers(1, 99, PROMPT), 16) for i in range(count)]
        serial: list[float] = []
        fused: list[float] = []
        for turn in range(3 if count == 16 else 1):
            findings.progress(f"throughput: {count} requests, turn {turn + 1}")
            for places in (1, REQUESTS) if turn % 2 == 0 else (REQUESTS, 1):
                served = serve(*real.engine(Flover(), sequences=places), map(Arrival, items))
                (serial if places == 1 else fused).append(served.seconds)
        found[count] = float(np.median(serial) / np.median(fused))
        step = 1e3 * float(np.median(fused)) / 16
        rows.append((count, 1e3 * float(np.median(serial)) / 16 / count, step, found[count]))
    findings.table(
        f"Here: a Llama of {real.parameters / 1e6:.0f} million weights, float32",
        ("requests", "step alone, ms", "step fused, ms", "throughput fused over serial", "paper, 65B"),
        [(*row, paper) for row, paper in zip(rows, PAPER_CURVE)],
    )
    findings.clocked("throughput of 16 fused over one after the other", found[16], ">", 3, unit="x")
    return found


def _reordering_here(real: Real, trial: Trial, findings: Findings) -> None:
    """Both take equally many steps, so they take them in turn, and each step's median over three rounds
    counts: whatever else the machine does falls on both."""
    rng = np.random.default_rng([trial.seed, 6])
    lengths = rng.integers(1, 49, REQUESTS)
    items = [request(f"r{i}", rng.integers(1, 99, PROMPT), int(n)) for i, n in enumerate(lengths)]
    rounds = []
    for number in range(3):
        findings.progress(f"reordering on the clock, round {number + 1}")
        engines = [real.engine(Flover(compact=compact), whole=True)[0] for compact in (False, True)]
        rounds.append(_in_turn(engines, items))
    without, rows = fused_rows(lengths[None])
    seconds = np.median(rounds, axis=0).sum(axis=0)
    findings.table(
        "Reordering here: holes computed, or closed",
        ("compaction", "rows", "seconds"),
        [
            ("without", int(without[0]), float(seconds[0])),
            ("with", int(rows[0]), float(seconds[1])),
        ],
    )
    ratio = seconds[0] / seconds[1]
    findings.clocked("time without over with compaction", ratio, ">", 1, unit="x", baseline=1.15)


def _in_turn(engines: list[Engine], items: list[Request]) -> list[list[float]]:
    """Seconds of every step of each engine, (steps, engines); they step one after the other."""
    for item in items:
        for engine in engines:
            engine.add(item, 0.0)
    taken: list[list[float]] = []
    while not engines[0].idle:
        seconds = [0.0] * len(engines)
        for i in range(len(engines))[:: 1 if len(taken) % 2 else -1]:
            began = time.perf_counter()
            engines[i].step(began)
            seconds[i] = time.perf_counter() - began
        taken.append(seconds)
    return taken


# Picture


def _draw(
    figure: Figure,
    draws: list[tuple[float, float]],
    window: dict[str, list[int]],
    curve: dict[int, float],
) -> None:
    left, right, *rest = figure.subplots(1, 3 if curve else 2)
    mean, spread = np.array(draws).T
    left.errorbar(
        GAPS, mean, yerr=2 * spread, fmt="o-", capsize=3, label="mean of many draws, ± 2 deviations"
    )
    left.plot(GAPS, PAPER, "x", color="black", label="the paper's draws")
    left.set(xscale="log", yscale="log", xlabel="ms between arrivals", ylabel="steps in all")
    left.legend(loc="lower right")
    for name, rows in window.items():
        right.plot(rows, label=f"{name} compaction")
    right.set(xlabel="step", ylabel="rows fused", ylim=(0, None))
    right.legend()
    for axes in rest:
        axes.plot(COUNTS, PAPER_CURVE, "x-", color="black", label="the paper, LLaMA 65B")
        axes.plot(list(curve), list(curve.values()), "o-", label="here")
        axes.set(xlabel="requests at once", ylabel="throughput, fused over serial")
        axes.legend()
