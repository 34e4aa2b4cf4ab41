"""Pages mapped side by side for each sequence give the answers of paged memory, at its price in memory.

Prabhu et al. 2024, "vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention", ASPLOS
2025, arXiv 2405.04437. Layouts ``paged``, ``slots`` (static places) and ``contiguous`` run on the same engine
and the same random weights.

- *Answers.* Requests of uniform lengths, some of which share a prefix, have the same tokens in all three.
- *Accounting.* After every step what is mapped must be what the books say, no sequence may be longer than
  what is mapped for it, and the system must have given the bytes of the pages ever mapped, to the byte.
- *Footprint.* Without eager mapping and deferred reclamation, pages in use are within one page a sequence
  of the tokens in them; static places take their whole length.
- *Reclamation, eager mapping.* Pages that a step must wait for, with each of the two switched off.
- *On the clock.* Steps of one token, and whole prompts in chunks, at 2,048 tokens of context, the two layouts
  in turn. Torch's own operators must gather pages first, but read a place where it lies, with a page of all
  layers from one position to the next; the compiled kernels read pages where they lie. That contiguous is no
  slower is given up if it is slower in more than 16 of 21 rounds, which for equals happens once in 280 times.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.core.config import EngineConfig
from shoal.core.plan import NO_MOVES
from shoal.core.request import Request
from shoal.engine import machine
from shoal.engine.build import prepare, start
from shoal.engine.engine import Engine
from shoal.experiments.benches import request
from shoal.experiments.claims import Findings, Trial
from shoal.experiments.places import SMALL
from shoal.memory.contiguous import ContiguousMemory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, LONGEST, SEQUENCES = 16, 512, 8
LAYOUTS = ("paged", "slots", "contiguous")
ATTENTIVE = SMALL | {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
ATTENTIVE |= {"max_position_embeddings": 4096}
"""Hardly anything but attention."""
CONTEXT, BATCH, ANSWER = 2048, 4, 24
ROUNDS, MOST_SLOWER = 21, 16


def run(trial: Trial, findings: Findings) -> None:
    rng = np.random.default_rng([trial.seed, 0])
    items = _requests(rng, 12 if trial.quick else 32)
    with tempfile.TemporaryDirectory() as folder:
        small = _model(Path(folder, "small"), SMALL)
        _answers(small, items, trial, findings)
        _footprint(small, items, trial, findings)
        _waits(small, trial, findings)
        if not trial.quick:
            _clock(_model(Path(folder, "attentive"), ATTENTIVE), trial, findings)


def _requests(rng: np.random.Generator, count: int) -> list[Request]:
    """A third begin with the same 64 tokens; lengths average a quarter of the longest."""
    stem = rng.integers(1, 99, 64)
    found = []
    for i in range(count):
        own = rng.integers(1, 99, rng.integers(8, 160))
        prompt = np.concatenate([stem, own]) if i % 3 == 0 else own
        found.append(request(f"r{i}", prompt, int(rng.integers(4, 48))))
    return found


def _model(folder: Path, shape: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


def _engine(folder: Path, layout: str, trial: Trial, **changes: Any) -> Engine:
    machine.calm_threads()
    config = {
        "model": str(folder),
        "load_format": "dummy",
        "dtype": "float32",
        "layout": layout,
        "page_size": PAGE,
        "max_model_len": LONGEST,
        "max_num_seqs": SEQUENCES,
        "kv_memory": 64 << 20,
        "seed": trial.seed % 2**32,
    }
    return start(prepare(EngineConfig(**(config | changes))))


def _answer(engine: Engine, items: list[Request], after: Any = lambda: None) -> dict[str, list[int]]:
    for item in items:
        engine.add(item, 0.0)
    found: dict[str, list[int]] = {}
    while not engine.idle:
        found |= {f.request.id: f.tokens.tolist() for f in engine.step(0.0).finished}
        after()
    return found


def _memory(engine: Engine) -> ContiguousMemory:
    assert isinstance(engine.memory, ContiguousMemory)
    return engine.memory


def _answers(folder: Path, items: list[Request], trial: Trial, findings: Findings) -> None:
    found = {}
    for layout in LAYOUTS[:2]:
        findings.progress(f"answers: {layout}")
        found[layout] = _answer(_engine(folder, layout, trial), items)
    findings.progress("answers: contiguous")
    engine = _engine(folder, "contiguous", trial)
    memory, places = _memory(engine), engine.executor.places  # type: ignore[attr-defined]
    touched: set[int] = set()
    wrong = short = 0

    def look() -> None:
        nonlocal wrong, short
        places.map(NO_MOVES)
        wrong += not np.array_equal(places.mapped, memory.mapped)
        short += int(np.count_nonzero(memory.table.computed > memory.table.pages * PAGE))
        touched.update(memory.mapped[memory.mapped >= 0].tolist())
        memory.check()

    answers = _answer(engine, items, look)
    off = places.memory.resident - len(touched) * places.page_bytes
    cached = engine.scheduler.counters.cached
    memory.reclaim()
    for layout in ("paged", "slots"):
        differ = sum(found[layout][name] != tokens for name, tokens in answers.items())
        findings.counted(f"answers that differ from layout {layout}", differ, "==", 0)
    findings.counted("prompt tokens taken from shared pages, so that it means something", cached, ">=", 64)
    findings.counted("steps after which something else is mapped than the books say", wrong, "==", 0)
    findings.counted("sequences longer than what is mapped for them", short, "==", 0)
    findings.counted("bytes that the system gave beyond the pages ever mapped", off, "==", 0)
    findings.counted("pages mapped after all is cleaned up", memory.resident, "==", 0)


def _footprint(folder: Path, items: list[Request], trial: Trial, findings: Findings) -> None:
    findings.progress("footprint")
    engine = _engine(folder, "contiguous", trial, prefix_reuse=False)
    memory = _memory(engine)
    memory.eager = memory.deferred = False
    beyond, resident, static = [0], [0], [0]

    def look() -> None:
        holders = memory.table.pages > 0
        tokens = int(memory.table.computed[holders].sum())
        beyond.append(memory.resident * PAGE - tokens - PAGE * int(holders.sum()))
        resident.append(memory.resident * PAGE)
        static.append(LONGEST * int(holders.sum()))

    _answer(engine, items, look)
    findings.counted("footprint: tokens beyond one page a sequence, at most", max(beyond), "<=", 0)
    findings.counted(
        "footprint: static places over contiguous, mean", sum(static) / sum(resident), ">=", 3, unit="x"
    )


def _waits(folder: Path, trial: Trial, findings: Findings) -> None:
    """Rounds of requests after rounds, in memory without sharing."""
    found = {}
    for name, eager, deferred in (
        ("both", True, True),
        ("no eager", False, True),
        ("no deferred", True, False),
    ):
        findings.progress(f"reclamation: {name}")
        rng = np.random.default_rng([trial.seed, 1])
        engine = _engine(folder, "contiguous", trial, prefix_reuse=False)
        memory = _memory(engine)
        memory.eager, memory.deferred = eager, deferred
        _answer(engine, _requests(rng, 16))
        before = memory.now
        again = _requests(rng, 16)
        _answer(engine, again)
        found[name] = (memory.now - before) / len(again), memory.ahead, memory.found
    findings.table(
        "Pages mapped, after a first round of requests",
        ("", "waited for, a request", "mapped beside steps", "found mapped"),
        [(name, *row) for name, row in found.items()],
    )
    waits = {name: row[0] for name, row in found.items()}
    findings.picture(lambda figure: _draw(figure, waits))
    name = "pages waited for a request: deferred over at once"
    findings.counted(name, waits["both"] / waits["no deferred"], "<=", 0.5, unit="x")
    findings.counted(
        "pages waited for a request: eager, at most without", waits["both"], "<=", waits["no eager"]
    )


def _draw(figure: Figure, waits: dict[str, float]) -> None:
    axes = figure.subplots()
    axes.bar(list(waits), list(waits.values()))
    axes.set(ylabel="pages that steps waited for, a request")


def _clock(folder: Path, trial: Trial, findings: Findings) -> None:
    rows = []
    for kernels in ("plain", "compiled"):
        ratios = _ratios(folder, kernels, trial, findings)
        rows += [(f"{kernels}, {kind}", np.median(found)) for kind, found in ratios.items()]
        for kind, found in ratios.items():
            name = f"{kernels} kernels, {kind}: rounds of {ROUNDS} in which contiguous is slower than paged"
            findings.clocked(name, int(np.count_nonzero(found > 1)), "<=", MOST_SLOWER)
    title = f"Seconds contiguous over paged, median of {ROUNDS} rounds"
    findings.table(title, ("kernels, steps", "ratio"), rows)


def _ratios(
    folder: Path, kernels: str, trial: Trial, findings: Findings
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Seconds contiguous over paged by kind of step, a number a round; who is first alternates."""
    rng = np.random.default_rng([trial.seed, 2])
    settings = {"kernels": kernels, "max_model_len": CONTEXT + ANSWER, "kv_memory": 256 << 20}
    engines = {
        layout: _engine(folder, layout, trial, prefix_reuse=False, **settings)
        for layout in ("paged", "contiguous")
    }
    took: dict[str, list[float]] = {"decode": [], "prefill": []}
    for turn in range(ROUNDS + 1):
        prompts = [rng.integers(1, 99, CONTEXT) for _ in range(BATCH)]
        items = [request(f"{turn}-{i}", prompt, ANSWER) for i, prompt in enumerate(prompts)]
        seconds = {}
        for layout in list(engines)[:: -1 if turn % 2 else 1]:
            findings.progress(f"{kernels} kernels on the clock, round {turn}: {layout}")
            seconds[layout] = _seconds(engines[layout], items)
        for kind, found in took.items():
            found.append(seconds["contiguous"][kind] / seconds["paged"][kind])
    # The first round touched memory for the first time.
    return {kind: np.array(found[1:]) for kind, found in took.items()}


def _seconds(engine: Engine, items: list[Request]) -> dict[str, float]:
    """Median seconds of steps of one row each, and those of all other steps."""
    for item in items:
        engine.add(item, 0.0)
    decode, prefill = [], 0.0
    while not engine.idle:
        before, running = engine.scheduler.counters.computed, len(engine.scheduler.running)
        began = time.perf_counter()
        engine.step(0.0)
        took = time.perf_counter() - began
        if engine.scheduler.counters.computed - before <= running:
            decode.append(took)
        else:
            prefill += took
    return {"decode": float(np.median(decode)), "prefill": prefill}
