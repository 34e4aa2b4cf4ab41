"""A row budget keeps long prompts from stalling everybody else, at little cost to the whole.

Agrawal et al. 2024, "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", OSDI'24,
arXiv 2403.02310. Every policy runs on the same engine. Counted claims run on simulated time: a table of
seconds in the shape of a real machine, whose step is bound by reading the weights up to about 30 rows and by
arithmetic beyond. Clocked claims run a small Llama with random weights on this machine; requests come by the
time of the table measured here, each step takes the median of what it took in three runs.

- *Stall.* Eight sequences are being answered; at step 20 a prompt of 1024 to 2048 tokens arrives. Under
  prefill-first everybody waits for the whole prompt, under Sarathi-Serve for a step of tau = 64 rows.
- *Trade-off.* A job at tau 16 to 256: the longest waits between tokens grow with tau, total time falls. The
  knee is the smallest tau whose rows per second, by T(n), the seconds of a step of n rows, come within 15%
  of the best.
- *Ablation.* Hybrid steps alone (tau as large as the longest prompt), chunks alone (never beside next
  tokens), both, with tau at the knee: the first has the shortest wait for a first token and the longest
  between tokens, the second the reverse, both together come close to the better of each.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shoal.core.cost import Cost, StepShape
from shoal.core.policy import Admission
from shoal.core.request import Request
from shoal.experiments.benches import (
    LONGEST,
    PAGE_SIZE,
    Bench,
    chat,
    median,
    on_this_machine,
    request,
    simulated,
    simulated_engine,
)
from shoal.experiments.claims import Findings, Trial
from shoal.experiments.serving import Arrival, Served, differing, percentile, serve
from shoal.schedule.admission.alternating import Alternating
from shoal.schedule.admission.prefill_first import PrefillFirst
from shoal.schedule.admission.sarathi_serve import SarathiServe
from shoal.schedule.admission.static import Static
from shoal.schedule.admission.whole_prompt import WholePrompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAUS = (16, 32, 64, 128, 256)
TAU = 64
CLOSE = 1e-4
"""Where the two best logits lie closer than this, float32 products of other shapes may choose the other."""
Curve = dict[int, tuple[float, float]]
"""{tau: (total seconds, P99 seconds between tokens)}"""


def run(trial: Trial, findings: Findings) -> None:
    _invariants(trial, findings)
    stall, curve = _compare(simulated(findings), findings)
    if not trial.quick:
        with tempfile.TemporaryDirectory() as folder:
            stall, curve = _compare(on_this_machine(Path(folder), findings), findings)
    findings.needs("capacity at the strict objective, tau 512 over prefill-first, >= 1.5", "simulate")
    findings.needs("capacity at the relaxed objective, tau 512 over prefill-first, >= 1", "simulate")
    findings.picture(lambda figure: _draw(figure, stall, curve))


def _compare(bench: Bench, findings: Findings) -> tuple[dict[str, Served], Curve]:
    rng = np.random.default_rng([findings.trial.seed, 1])
    stall = _stall(bench, rng, findings)
    curve = _trade_off(bench, rng, findings)
    _ablation(bench, rng, findings)
    return stall, curve


def _invariants(trial: Trial, findings: Findings) -> None:
    """What is promised at any speed."""
    rng = np.random.default_rng([trial.seed, 0])
    items = chat(rng, 16 if trial.quick else 48, prompt=60.0, answer=10.0, most=400)
    steps = np.cumsum(rng.integers(0, 6, len(items))).tolist()
    arrivals = [Arrival(item, step=step) for item, step in zip(items, steps, strict=True)]
    alone = serve(*simulated_engine(SarathiServe(rows=512), sequences=1), arrivals)
    differ = over = missed = again = held = 0
    for tau in (5, 16, TAU, 256) if trial.quick else (1, 7, *TAUS):
        findings.progress(f"invariants: tau {tau}")
        engine, clock = simulated_engine(SarathiServe(rows=tau))
        served = serve(engine, clock, arrivals, check=True)
        differ += differing(alone, served)[0]
        over += sum(step.rows > tau for step in served.steps)
        missed += sum(step.passed_over for step in served.steps)
        again += _computed_again(served)
        held += engine.memory.ledger.total - engine.memory.ledger.available
        assert not engine.scheduler.counters.preemptions
    findings.counted("answers that change with tau", differ, "==", 0)
    policies = PrefillFirst(), WholePrompt(), Static(), Alternating(rows=TAU)
    others = [serve(*simulated_engine(policy), arrivals) for policy in policies]
    differ = sum(differing(alone, served)[0] for served in others)
    findings.counted("answers that change with the admission policy", differ, "==", 0)
    findings.counted("steps of more than tau rows", over, "==", 0)
    findings.counted("next tokens left out of a step", missed, "==", 0)
    findings.counted("tokens computed twice or never, nobody preempted", again, "==", 0)
    findings.counted("pages not given back", held, "==", 0)
    _smallest_pool((7, TAU) if trial.quick else (7, *TAUS), rng, findings)


def _computed_again(served: Served) -> int:
    """Rows beyond, or short of, every prompt token and all but the last answer token once."""
    return sum(
        abs(answer.computed - len(answer.request.prompt) - len(answer.tokens) + 1)
        for answer in served.finished.values()
    )


def _smallest_pool(taus: tuple[int, ...], rng: np.random.Generator, findings: Findings) -> None:
    """A pool that holds the longest sequence and no more: everybody still gets the answer it gets alone."""
    items = chat(rng, 12, prompt=40.0, answer=30.0, most=100)
    items.append(request("longest", rng.integers(1, 2000, 120), 40))
    arrivals, pool = [Arrival(item) for item in items], {"pages": 160 // PAGE_SIZE, "longest": 160}
    alone = serve(*simulated_engine(SarathiServe(rows=512), sequences=1, **pool), arrivals)
    unlike = preempted = 0
    for tau in taus:
        engine, clock = simulated_engine(SarathiServe(rows=tau), **pool)
        served = serve(engine, clock, arrivals, check=True)
        unlike += differing(alone, served)[0] + len(items) - len(served.finished)
        preempted += engine.scheduler.counters.preemptions
    findings.counted("requests not answered as alone, where the pool holds one", unlike, "==", 0)
    findings.counted("preemptions there", preempted, ">=", 1)


def _stall(bench: Bench, rng: np.random.Generator, findings: Findings) -> dict[str, Served]:
    """A long prompt arrives while eight sequences are being answered."""
    length, begins = int(rng.integers(1024, 2049)), 20
    # All eight are still being answered when the long prompt is through.
    answer = begins + -(-length // (TAU - 8)) + 20
    eight = [request(f"r{i}", rng.integers(1, 2000, 16), answer) for i in range(8)]
    arrivals = [*map(Arrival, eight), Arrival(request("long", rng.integers(1, 2000, length), 4), step=begins)]
    names = [item.id for item in eight]
    policies = {"prefill-first": PrefillFirst(rows=LONGEST), "sarathi-serve": SarathiServe(rows=TAU)}
    runs = bench.runs(policies, arrivals, findings)
    gap = {name: median([each.gaps(*names)[1].max() for each in served]) for name, served in runs.items()}
    first = {name: median([each.first_token("long") for each in served]) for name, served in runs.items()}
    worse, later = (found["sarathi-serve"] / found["prefill-first"] for found in (gap, first))
    bench.claim(f"longest gap between tokens, prefill-first over tau {TAU}", 1 / worse, ">=", 4)
    # Each step reads what eight next tokens leave of tau.
    overhead = _reading(bench.cost, length, TAU, 8) / _reading(bench.cost, length, LONGEST, 0)
    name = f"first token of the long prompt, tau {TAU} over prefill-first (baseline: by T)"
    bench.claim(name, later, "<=", round(1.25 * overhead, 2), overhead)
    findings.table(
        f"Stall, {bench.where}: a prompt of {length:,} tokens arrives",
        ("policy", "longest gap, ms", "first token of the long prompt, ms"),
        [(name, 1e3 * gap[name], 1e3 * first[name]) for name in policies],
    )
    return {name: served[0] for name, served in runs.items()}


def _reading(cost: Cost, length: int, tau: int, beside: int) -> float:
    """Seconds to read a prompt in steps of tau rows, with so many next tokens in each."""
    total, start = 0.0, 0
    while start < length:
        rows = min(tau - beside, length - start)
        pairs = rows * start + rows * (rows + 1) // 2
        total += cost.step(StepShape(rows + beside, 1 + beside, beside, start + rows, pairs))
        start += rows
    return total


def _trade_off(bench: Bench, rng: np.random.Generator, findings: Findings) -> Curve:
    """A job whose requests all wait from the start."""
    items = chat(rng, int(60 * bench.share), prompt=216.0, answer=52.0, most=1024)
    policies: dict[str, Admission] = {f"tau {tau}": SarathiServe(rows=tau) for tau in TAUS}
    runs = bench.runs(policies, [Arrival(item) for item in items], findings)
    curve: Curve = {}
    for tau, served in zip(TAUS, runs.values(), strict=True):
        longest = [percentile(each.gaps()[1], 99) for each in served]
        curve[tau] = median([each.seconds for each in served]), median(longest)
    rates, knee = _rates(bench.cost), _knee(bench.cost)
    (slow, short), (fast, long) = curve[TAUS[0]], curve[TAUS[-1]]
    least_rise = min(curve[high][1] / curve[low][1] for low, high in pairwise(TAUS))
    least = min(total for total, _ in curve.values())
    bench.claim("P99 between tokens, least rise at a doubling of tau", least_rise, ">=", 1 - bench.noise)
    bench.claim(f"P99 between tokens, tau {TAUS[-1]} over tau {TAUS[0]}", long / short, ">=", 3)
    bench.claim(f"total time, tau {TAUS[0]} over tau {TAUS[-1]}", slow / fast, ">=", 1.2)
    bench.claim("total time at the knee over the least", curve[knee][0] / least, "<=", 1.2)
    findings.table(
        f"Trade-off, {bench.where}: {len(items)} requests; the knee of T(n) is at {knee}",
        ("tau", "T(tau), ms", "rows a second by T", "P99 between tokens, ms", "total, s"),
        [(tau, 1e3 * bench.cost.rows(tau), rates[tau], 1e3 * curve[tau][1], curve[tau][0]) for tau in TAUS],
    )
    if bench.repeats > 1:
        _same_answers(runs, findings)
    return curve


def _same_answers(runs: dict[str, list[Served]], findings: Findings) -> None:
    """Answers of a real model at every tau."""
    first = runs[f"tau {TAU}"][0]
    found = [differing(first, each, CLOSE) for served in runs.values() for each in served]
    differ, excused = np.sum(found, axis=0).tolist()
    findings.counted("here: answers that change with tau", differ, "==", 0)
    share = excused / sum(len(each.tokens) for served in runs.values() for each in served)
    findings.counted("here: share of answers excused by a near-tie", share, "<=", 0.02)


def _ablation(bench: Bench, rng: np.random.Generator, findings: Findings) -> None:
    """Requests come at even distances, three quarters as many as steps of tau rows could take, tau at the
    knee."""
    tau = _knee(bench.cost)
    items = chat(rng, int(120 * bench.share), prompt=216.0, answer=52.0, most=1024)
    times = (np.arange(len(items)) * _seconds_each(bench.cost, tau, items) / 0.75).tolist()
    arrivals = [Arrival(item, at) for item, at in zip(items, times, strict=True)]
    policies: dict[str, Admission] = {
        "hybrid steps alone": SarathiServe(rows=max(len(item.prompt) for item in items)),
        "chunks alone": Alternating(rows=tau),
        "both": SarathiServe(rows=tau),
    }
    runs = bench.runs(policies, arrivals, findings)
    first, between = {}, {}
    for name, served in runs.items():
        first[name] = median([percentile(each.first_tokens(), 50) for each in served])
        between[name] = median([percentile(each.gaps()[1], 99) for each in served])
    hybrid, chunks, both = first.values()
    bench.claim("P50 first token, both over hybrid steps alone", both / hybrid, ">=", 1 - bench.noise)
    bench.claim("P50 first token, chunks alone over both", chunks / both, ">=", 1 - bench.noise)
    way = (both - hybrid) / (chunks - hybrid)
    bench.claim("P50 first token, how far both is from hybrid to chunks", way, "<=", 0.5)
    hybrid, chunks, both = between.values()
    bench.claim("P99 between tokens, hybrid steps alone over chunks alone", hybrid / chunks, ">=", 2)
    bench.claim("P99 between tokens, both over the better", both / min(hybrid, chunks), "<=", 1.2)
    findings.table(
        f"Ablation, {bench.where}: {len(items)} requests at even distances; tau {tau}",
        ("policy", "P50 first token, ms", "P99 between tokens, ms", "total, s"),
        [(name, 1e3 * first[name], 1e3 * between[name], runs[name][0].seconds) for name in policies],
    )


def _rates(cost: Cost) -> dict[int, float]:
    """Rows a second in steps of tau rows."""
    return {tau: tau / cost.rows(tau) for tau in TAUS}


def _knee(cost: Cost) -> int:
    rates = _rates(cost)
    return next(tau for tau in TAUS if rates[tau] >= 0.85 * max(rates.values()))


def _seconds_each(cost: Cost, tau: int, items: list[Request]) -> float:
    """Of the machine's time, what a request takes where every step has tau rows: prompt rows and next tokens
    in the proportion in which the requests have them, next tokens halfway through their answers."""
    prompt = float(np.mean([len(item.prompt) for item in items]))
    answer = float(np.mean([item.params.max_tokens or 0 for item in items]))
    emits = round(tau * answer / (prompt + answer))
    context = round(prompt + answer / 2)
    pairs = emits * context + (tau - emits) * round(prompt / 2)
    shape = StepShape(tau, emits + 1, emits, (emits + 1) * context, pairs)
    return (prompt + answer) / tau * cost.step(shape)


def _draw(figure: Figure, stall: dict[str, Served], curve: Curve) -> None:
    left, right = figure.subplots(1, 2)
    for name, served in stall.items():
        at, gap = served.gaps()
        left.plot(at - served.arrived["long"], 1e3 * gap, ".", markersize=4, label=name)
    left.set(yscale="log", xlabel="seconds since the long prompt came", ylabel="gap between tokens, ms")
    left.legend(frameon=False)
    total, between = zip(*curve.values(), strict=True)
    right.plot(total, 1e3 * np.array(between), "o-")
    for tau, (x, y) in curve.items():
        right.annotate(f"tau {tau}", (x, 1e3 * y), textcoords="offset points", xytext=(6, 4))
    right.set(xlabel="seconds for the whole job", ylabel="P99 between tokens, ms")
