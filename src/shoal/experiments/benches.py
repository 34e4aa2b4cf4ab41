"""Two places to compare admission policies: simulated time, and a small model on this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np

from shoal.core.config import NULL_MODEL, EngineConfig
from shoal.core.cost import Cost, CostTable
from shoal.core.policy import Admission
from shoal.core.request import Request, SamplingParams
from shoal.engine import machine
from shoal.engine.build import assemble, prepare
from shoal.engine.calibrate import calibrate
from shoal.engine.engine import Engine
from shoal.engine.null_model import NullModel
from shoal.engine.priced import JumpingClock, PricedExecutor
from shoal.experiments.claims import Findings
from shoal.experiments.serving import F64, Arrival, Clock, OnTableTime, Served, serve

LONGEST = 2304
PAGE_SIZE = 16
SEQUENCES = 32
VOCABULARY = 2048
CALIBRATION = 10.0
"""Seconds."""
_FLOOR, _ROW, _OVERHEAD = 18e-3, 0.6e-3, 2e-3
_COUNTS = (1, 8, 16, 24, 32, 48, 64, 128, 256, 512, 1024, 2048)
MACHINE = CostTable(
    row_counts=_COUNTS,
    row_seconds=tuple(_OVERHEAD + math.hypot(_FLOOR, _ROW * n) for n in _COUNTS),
    emit_counts=(1, 64),
    emit_seconds=(1e-3, 3e-3),
    gathered=1e-6,
    pair=2e-7,
)
"""Simulated: 18 ms to read the weights, 0.6 ms of arithmetic a row, whichever is longer, without a corner."""
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
"""Some fourteen million weights: enough that arithmetic, not overhead, is what a step of many rows costs."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where policies are compared.

    Attributes:
        where: in words, for names of claims.
        engine: a fresh engine and its clock under an admission policy.
        cost: seconds of steps there.
        state: ``Findings.counted`` or ``Findings.clocked``.
        repeats: runs of each policy, in which every step is the same; where more than one, a step takes the
            median of its seconds by the wall in them.
        share: of the full number of requests.
        noise: share by which seconds that ought to be equal may differ.
    """

    where: str
    engine: Callable[[Admission], tuple[Engine, Clock]]
    cost: Cost
    state: Callable[..., None]
    repeats: int = 1
    share: float = 1.0
    noise: float = 0.0

    def runs(
        self, policies: dict[str, Admission], arrivals: list[Arrival], findings: Findings
    ) -> dict[str, list[Served]]:
        """Each policy's runs; every other round goes through the policies backwards."""
        found: dict[str, list[Served]] = {name: [] for name in policies}
        for turn in range(self.repeats):
            for name in list(policies)[:: -1 if turn % 2 else 1]:
                findings.progress(f"{self.where}: {name}")
                found[name].append(serve(*self.engine(policies[name]), arrivals))
        return {name: _on_the_wall(runs) if self.repeats > 1 else runs for name, runs in found.items()}

    def claim(
        self, name: str, value: float, op: str, threshold: float, baseline: float | None = None
    ) -> None:
        """State a ratio of seconds."""
        self.state(f"{self.where}: {name}", value, op, threshold, unit="x", baseline=baseline)


def _on_the_wall(runs: list[Served]) -> list[Served]:
    """Runs of the same steps, each of which takes the median of its seconds by the wall."""
    seconds = np.median([[step.wall for step in served.steps] for served in runs], axis=0)
    return [served.retimed(seconds) for served in runs]


def simulated_engine(
    admission: Admission, *, sequences: int = SEQUENCES, pages: int | None = None, longest: int = LONGEST
) -> tuple[Engine, Clock]:
    """An engine on simulated time whose tokens are a function of all before them; by default its pool is
    large enough that nobody is ever preempted."""
    clock = JumpingClock()
    pool = pages or (sequences + 1) * -(-longest // PAGE_SIZE)
    executor = PricedExecutor(MACHINE, clock, pool, PAGE_SIZE, VOCABULARY, arithmetic=True)
    config = EngineConfig(
        model=NULL_MODEL, admission=admission, max_num_seqs=sequences, page_size=PAGE_SIZE, prefix_reuse=False
    )
    return assemble(config, executor, NullModel(longest)), clock


def simulated(findings: Findings) -> Bench:
    share = 0.4 if findings.trial.quick else 1.0
    return Bench("simulated", simulated_engine, MACHINE, findings.counted, share=share)


def on_this_machine(folder: Path, findings: Findings) -> Bench:
    """A small Llama with random weights, float32, and the seconds of its steps measured first.

    Requests come by the time of that table, and seconds are read off the wall: a machine whose speed drifts
    is loaded alike throughout. One thread computes, so that what else runs here disturbs less.

    Args:
        folder: an empty one, for the model's configuration.
    """
    machine.calm_threads()
    from shoal.engine.tensors.start import model_executor

    (folder / "config.json").write_text(json.dumps(LLAMA))
    config = EngineConfig(
        model=str(folder),
        load_format="dummy",
        dtype="float32",
        # What a policy gains is asked of torch's operators, which every machine has.
        kernels="plain",
        max_model_len=LONGEST,
        max_num_seqs=SEQUENCES,
        page_size=PAGE_SIZE,
        prefix_reuse=False,
        record_margins=True,
        threads=1,
        seed=findings.trial.seed,
    )
    prepared = prepare(config)
    assert prepared.architecture is not None
    executor = model_executor(prepared)
    findings.progress("measuring what steps cost here")
    token = prepared.architecture.kv_bytes_per_token(4)
    cost = calibrate(executor, LONGEST, token, budget=CALIBRATION).table

    def engine(admission: Admission) -> tuple[Engine, Clock]:
        chosen = msgspec.structs.replace(config, admission=admission)
        clock = JumpingClock()
        return assemble(chosen, OnTableTime(executor, cost, clock), prepared.model), clock

    return Bench("here", engine, cost, findings.clocked, repeats=3, share=0.4, noise=0.1)


def request(name: str, prompt: Any, answer: int) -> Request:
    """Greedy, of exactly ``answer`` tokens."""
    return Request(
        id=name,
        prompt=np.asarray(prompt, dtype=np.int32),
        params=SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True),
    )


def chat(rng: np.random.Generator, count: int, *, prompt: float, answer: float, most: int) -> list[Request]:
    """Log-normal lengths with these medians; prompts are spread as in the paper's chat trace, whose 90th
    percentile is 3.3 times its median. Lengths are quantiles at equal distances; their order is random."""
    prompts = np.clip(np.rint(prompt * np.exp(0.93 * _normal(rng, count))), 4, most)
    answers = np.clip(np.rint(answer * np.exp(0.5 * _normal(rng, count))), 2, 4 * answer)
    return [
        request(f"r{i}", rng.integers(1, VOCABULARY, int(prompts[i])), int(answers[i])) for i in range(count)
    ]


def _normal(rng: np.random.Generator, count: int) -> F64:
    """Quantiles of the normal distribution at equal distances, in random order."""
    return rng.permutation([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])


def median(values: list[float]) -> float:
    return float(np.median(values))
