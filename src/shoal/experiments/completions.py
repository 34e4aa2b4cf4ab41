"""Many answers to one prompt through the engine, and what their steps read and take."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shoal.core.config import EngineConfig
from shoal.core.executor import Executor
from shoal.core.plan import I32, StepPlan
from shoal.core.request import Request
from shoal.engine.build import assemble, prepare
from shoal.engine.engine import Engine
from shoal.experiments.benches import request
from shoal.experiments.claims import Findings, Trial
from shoal.experiments.places import LARGE, SMALL
from shoal.experiments.prefixes import BLOCK
from shoal.experiments.serving import Arrival, Noting, WallClock, serve

WIDE = LARGE | {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 2048,
    "max_position_embeddings": 16384,
}
"""Every query head has K and V of its own, as in the models of the paper."""
PROMPT, LONGER, ANSWERS, TOKENS = 1024, 8, 32, 32
TIMED = 24
"""Steps in which every answer gets a token."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A model's shape, and how many answers of how many tokens a prompt gets."""

    shape: dict[str, Any]
    dtype: str
    prompt: int
    answers: int
    tokens: int

    def requests(self, seed: int) -> list[Request]:
        """One prompt with a last token of each answer's own."""
        common = np.random.default_rng([seed, 7]).integers(1, self.shape["vocab_size"], self.prompt)
        return [request(f"r{i}", [*common, 1 + i], self.tokens) for i in range(self.answers)]

    def engine(
        self, folder: Path, seed: int, *, share: bool = True, window: int | None = None, together: bool = True
    ) -> Engine:
        """An engine whose pool holds the prompt once; see ``tensors.attention.executor``.

        Args:
            together: all answers run side by side; else one after the other, and nothing is reused.
        """
        from shoal.experiments.tensors.attention import executor

        (folder / "config.json").write_text(json.dumps(self.shape))
        longest = self.prompt + 1 + self.tokens
        size = self.shape["hidden_size"] // self.shape["num_attention_heads"]
        width = self.shape["num_hidden_layers"] * self.shape["num_key_value_heads"] * size
        pool = 2 * longest + self.answers * (self.tokens + 64)
        config = EngineConfig(
            model=str(folder),
            load_format="dummy",
            dtype=self.dtype,  # type: ignore[arg-type]
            kernels="compiled",
            kv_memory=pool * 2 * width * (2 if self.dtype == "bfloat16" else 4),
            max_model_len=longest,
            max_num_seqs=self.answers if together else 1,
            prefix_reuse=together,
            seed=seed % 2**32,
        )
        prepared = prepare(config)
        model = executor(prepared, share=share, window=window)
        return assemble(config, Reading(model), prepared.model)


@dataclass(slots=True)
class Reads:
    """Of each step in which every run has one row: their positions, and what was read by layer and head."""

    position: list[I32] = field(default_factory=list)
    read: list[float] = field(default_factory=list)

    def wrong(self, common: int) -> int:
        """Steps that did not read ``common`` positions once, in whole blocks, and each row's others."""
        shared = common // BLOCK * BLOCK
        wanted = [shared + int((position + 1 - shared).sum()) for position in self.position]
        return sum(found != each for found, each in zip(self.read, wanted, strict=True))


class Reading(Noting):
    """An executor that keeps what its steps read."""

    def __init__(self, inner: Executor) -> None:
        super().__init__(inner)
        self.reads = Reads()

    def submit(self, plan: StepPlan) -> None:
        model = self.inner.model  # type: ignore[attr-defined]
        before = model.session.positions_read
        self.inner.submit(plan)
        if plan.run_count == plan.row_count:
            heads = sum(layer.attention.kv_heads for layer in model.architecture.layers)
            self.reads.position.append(plan.position)
            self.reads.read.append((model.session.positions_read - before) / heads)


def counted(folder: Path, trial: Trial, findings: Findings) -> None:
    """Answers and reads of a small model, float32."""
    setting = Setting(SMALL, "float32", 300, 12, 12)
    items = setting.requests(trial.seed)
    ways: dict[str, dict[str, bool]] = {
        "shared": {},
        "sharing unseen": {"share": False},
        "alone": {"together": False},
    }
    tokens, read = {}, {}
    for name, how in ways.items():
        findings.progress(f"engine: {name}")
        engine = setting.engine(folder, trial.seed, **how)  # type: ignore[arg-type]
        tokens[name] = serve(engine, WallClock(), map(Arrival, items)).tokens
        assert isinstance(engine.executor, Reading)
        read[name] = engine.executor.reads
    differ = sum(each != tokens["alone"] for each in tokens.values())
    findings.counted("engine: ways whose greedy answers differ from those alone", differ, "==", 0)
    wrong = read["shared"].wrong(setting.prompt)
    findings.counted("engine: steps that read more or less than the prompt once", wrong, "==", 0)
    full = sum(len(position) == setting.answers for position in read["shared"].position)
    findings.counted("engine: steps with all answers, so that it means something", full, ">=", 8)


def clocked(folder: Path, trial: Trial, findings: Findings) -> None:
    """Tokens a second of a wider model after a prompt and one ``LONGER`` times as long."""
    ways: dict[str, dict[str, Any]] = {
        "shared": {},
        "sharing unseen": {"share": False},
        "no attention": {"window": 1},
    }
    rate: dict[int, dict[str, float]] = {}
    for prompt in (PROMPT, LONGER * PROMPT):
        setting = Setting(WIDE, "bfloat16", prompt, ANSWERS, TOKENS)
        engines = []
        for name, how in ways.items():
            findings.progress(f"engine: prompt of {prompt}, {name}")
            engines.append(setting.engine(folder, trial.seed, **how))
            _begin(engines[-1], setting.requests(trial.seed))
        findings.progress(f"engine: prompt of {prompt}, answers")
        seconds = _steps_in_turn(engines)
        rate[prompt] = {name: ANSWERS / each for name, each in zip(ways, seconds)}
    short, long = rate.values()
    gain = long["shared"] / long["sharing unseen"]
    kept = {name: long[name] / short[name] for name in ways}
    where = f"engine, prompt of {LONGER * PROMPT}"
    findings.clocked(f"{where}: tokens a second, shared over sharing unseen", gain, ">", 1.25, unit="x")
    findings.clocked(
        f"engine: share of tokens a second left with a prompt {LONGER} times as long",
        kept["shared"],
        ">",
        kept["sharing unseen"],
        baseline=kept["sharing unseen"],
    )
    findings.table(
        f"{ANSWERS} answers side by side: 2 layers of 16 heads of K and V, bfloat16",
        ("attention", *(f"prompt of {prompt}, tokens/s" for prompt in rate), "left"),
        [(name, short[name], long[name], f"{kept[name]:.0%}") for name in ways],
    )


def _begin(engine: Engine, items: list[Request]) -> None:
    """Step until every answer has its first token."""
    waiting = set(engine.add_all(items, 0.0))
    while waiting:
        waiting.difference_update(engine.step(time.perf_counter()).handles.tolist())


def _steps_in_turn(engines: list[Engine]) -> list[float]:
    """Median seconds of a step of each, taken one after the other."""
    taken = np.zeros((TIMED, len(engines)))
    for turn in range(TIMED):
        for i in range(len(engines))[:: -1 if turn % 2 else 1]:
            began = time.perf_counter()
            output = engines[i].step(began)
            taken[turn, i] = time.perf_counter() - began
            assert len(output.handles) == ANSWERS
    return [float(each) for each in np.median(taken, axis=0)]
