"""Whole batches on one engine: prompts with shared beginnings, and what becomes of them under a policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.config import NULL_MODEL, EngineConfig
from shoal.core.cost import Cost
from shoal.core.policy import ForestView, Policy, Reuse
from shoal.core.request import Request, SamplingParams
from shoal.engine.build import assemble
from shoal.engine.engine import Engine
from shoal.engine.null_model import NullModel
from shoal.engine.priced import JumpingClock, PricedExecutor, step
from shoal.experiments.benches import VOCABULARY
from shoal.memory.kv import KVMemory
from shoal.memory.prefix import ROOT
from shoal.reuse.forest import forest_of
from shoal.reuse.forest_order import ForestOrder
from shoal.reuse.hashes import PageHashes
from shoal.reuse.planning import JobPlan, make_plan

PAGE_SIZE = 16
LONGEST = 512
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts in random order, the tokens that each answer will have, and the groups that share a beginning.

    Attributes:
        common: tokens that the members of a group have in common.
        examples: one row of each group.
    """

    prompts: list[I32]
    answers: I32
    common: int
    examples: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.prompts))

    def forest(self) -> ForestView:
        hashes, ones = PageHashes(PAGE_SIZE), np.ones(len(self.prompts), dtype=np.int32)
        length = np.array([len(prompt) for prompt in self.prompts], dtype=np.int32)
        hashes.add(np.concatenate(self.prompts), length)
        return forest_of(hashes, length, self.answers, ones, ones == 0)

    def shuffled(self, rng: np.random.Generator) -> Batch:
        """The same prompts in another order."""
        order = rng.permutation(len(self.prompts))
        place = np.argsort(order)
        examples = tuple(int(place[row]) for row in self.examples)
        return Batch([self.prompts[i] for i in order], self.answers[order], self.common, examples)

    def need(self) -> int:
        """Pages of all requests side by side, each shared prefix counted once."""
        alone = sum(-(-(len(p) + int(a)) // PAGE_SIZE) for p, a in zip(self.prompts, self.answers))
        return alone - make_plan(ForestOrder(), self.forest()).saved // PAGE_SIZE


def batch(
    rng: np.random.Generator,
    groups: int,
    *,
    members: int = 16,
    common: int = 128,
    distinct: int = 12,
    answer: float = 16.0,
    instructions: int = 0,
) -> Batch:
    """Groups of prompts with ``common`` tokens in common, one in ten prompts beside them that has nothing.

    The length of answers is log-normal around ``answer``, from a quarter to four times as long, one draw a
    group.

    Args:
        instructions: above 0, the first half of ``common`` is one of so many that several groups share.
    """
    half = common // 2
    shared = rng.integers(1, VOCABULARY, (max(1, instructions), half))
    prompts, answers, group = [], [], []
    for i in range(groups + round(groups * members / 9)):
        first = rng.integers(1, VOCABULARY, common)
        if instructions:
            first[:half] = shared[i % instructions]
        length = answer * np.exp(0.8 * rng.standard_normal())
        for _ in range(members if i < groups else 1):
            if i >= groups:
                first = rng.integers(1, VOCABULARY, common)
            prompts.append(np.concatenate([first, rng.integers(1, VOCABULARY, distinct)]).astype(np.int32))
            answers.append(round(min(max(length, answer / 4), answer * 4)))
            group.append(i)
    order = rng.permutation(len(prompts))
    place = np.argsort(order)
    examples = tuple(int(place[group.index(i)]) for i in range(groups))
    return Batch([prompts[i] for i in order], np.array(answers, dtype=np.int32)[order], common, examples)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a batch: a reuse policy for its plan, and what the engine is built with."""

    reuse: Reuse
    engine: dict[str, Any]

    def plan(self, forest: ForestView) -> JobPlan:
        return make_plan(self.reuse, forest)

    def config(self, **settings: Any) -> EngineConfig:
        fresh = {name: _fresh(value) for name, value in self.engine.items()}
        return EngineConfig(**({"page_size": PAGE_SIZE} | settings | fresh))


def _fresh(value: Any) -> Any:
    """A policy of its own for every engine."""
    if not isinstance(value, Policy):
        return value
    return type(value)(**{name: getattr(value, name) for name in value.parameters()})


def requests(batch: Batch, plan: JobPlan) -> list[Request]:
    """In the order of the plan, which is the order in which they come."""
    return [
        Request(
            id=str(row),
            prompt=batch.prompts[row],
            params=SamplingParams(temperature=0.0, max_tokens=int(batch.answers[row]), ignore_eos=True),
            domain=plan.domain(row),
            shared=plan.shared(row),
            path=plan.path(row),
        )
        for row in plan.order.tolist()
    ]


@dataclass(slots=True)
class Ran:
    """What became of a batch on simulated time.

    Attributes:
        seconds: to the last answer.
        prompt: prompt tokens computed, those computed again after a preemption included.
        tokens: answers by request id.
        ends: end of each step, seconds. prompt_rows, answer_rows: rows of each step.
        running: sequences in each step.
        prefixes: pages of groups' common beginnings that lie in memory after each step.
    """

    seconds: float = 0.0
    prompt: int = 0
    preemptions: int = 0
    tokens: dict[str, list[int]] = field(default_factory=dict)
    ends: list[float] = field(default_factory=list)
    prompt_rows: list[int] = field(default_factory=list)
    answer_rows: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)

    @property
    def valley(self) -> int:
        """Steps at the end that compute no prompt any more."""
        last = np.flatnonzero(self.prompt_rows)[-1]
        return len(self.prompt_rows) - 1 - int(last)

    def lifetime(self, pages: int) -> float:
        """Seconds that each of so many prefix pages lies in memory, on average."""
        return float(np.dot(self.prefixes, np.diff(self.ends, prepend=0.0))) / pages


def simulate(
    batch: Batch, way: Way, pages: int, cost: Cost, *, sequences: int = 4096, watch: bool = False
) -> Ran:
    """Run a batch to its end on the null executor and a clock that jumps.

    Args:
        sequences: most that run side by side.
        watch: look for the groups' prefixes in memory after every step.
    """
    clock = JumpingClock()
    executor = PricedExecutor(cost, clock, pages, PAGE_SIZE, VOCABULARY, arithmetic=True)
    config = way.config(model=NULL_MODEL, max_num_seqs=sequences)
    engine = assemble(config, executor, NullModel(LONGEST))
    plan = way.plan(batch.forest())
    for request in requests(batch, plan):
        engine.add(request, 0.0)
    ran, counters = Ran(), engine.scheduler.counters
    while not engine.idle:
        computed, generated = counters.computed, counters.generated
        record = step(engine, clock)
        ran.ends.append(record.end)
        ran.answer_rows.append(counters.generated - generated)
        ran.prompt_rows.append(counters.computed - computed - ran.answer_rows[-1])
        ran.running.append(record.shape.runs)
        if watch:
            ran.prefixes.append(_prefix_pages(engine, batch, plan))
        for answer in record.output.finished:
            ran.tokens[answer.request.id] = answer.tokens.tolist()
    ran.seconds, ran.preemptions = clock(), counters.preemptions
    ran.prompt = counters.computed - counters.generated
    return ran


def _prefix_pages(engine: Engine, batch: Batch, plan: JobPlan) -> int:
    assert isinstance(engine.memory, KVMemory)
    index = engine.memory.prefix
    return sum(
        len(index.match(ROOT - plan.domain(row), batch.prompts[row][: batch.common]))
        for row in batch.examples
    )
