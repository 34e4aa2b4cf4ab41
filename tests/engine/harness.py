"""Small engines on the null executor, and the plain twin of what they must answer."""

from __future__ import annotations

import numpy as np

from shoal.core.policies import make
from shoal.core.policy import Policy
from shoal.core.request import Finished, Request, SamplingParams
from shoal.core.table import SequenceTable
from shoal.engine.engine import Engine
from shoal.engine.null_executor import NullExecutor, next_token
from shoal.memory.contiguous import ContiguousMemory
from shoal.memory.kv import KVMemory
from shoal.memory.slots import SlotMemory
from shoal.schedule.scheduler import Scheduler

END = 0


def overflow(engine: Engine, token: int) -> None:
    """Let a token's embedding be infinite in an engine of float32."""
    model = engine.executor.model
    table = model.weights.tensors["embed"]
    if not model.invariant:
        table[token] = float("inf")
        return
    # Packed: tiles of 16 tokens, (hidden, 16) each.
    tiles, hidden = -(-len(table) // 16), table.shape[1]
    table.as_strided((tiles, hidden, 16), (16 * hidden, 16, 1))[token // 16, :, token % 16] = float("inf")


class Ticks:
    """A clock that tests turn by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def null_engine(
    *,
    pages: int = 64,
    page_size: int = 4,
    vocabulary: int = 50,
    reserved: int = 0,
    max_running: int = 8,
    max_length: int | None = None,
    order: str | Policy = "fcfs",
    admission: str | Policy = "sarathi-serve:rows=16",
    victim: str | Policy = "last",
    retention: str | Policy = "planned",
    reuse: bool = True,
    layout: str = "paged",
    compact: bool = True,
    eager: bool = True,
    deferred: bool = True,
    fail=None,
    seed: int = 0,
) -> Engine:
    table = SequenceTable()
    parts = {
        seam: make(seam, spec)
        for seam, spec in {
            "order": order,
            "admission": admission,
            "victim": victim,
            "retention": retention,
        }.items()
    }
    for policy in parts.values():
        policy.bind(None, np.random.default_rng(seed))
    if layout == "slots":
        page_size = max_length or page_size
        memory = SlotMemory(table, pages, page_size, compact=compact)
    elif layout == "contiguous":
        memory = ContiguousMemory(
            table,
            pages,
            page_size,
            parts["retention"],
            reuse,
            places=min(pages, max_running),
            length=max_length or pages * page_size,
            eager=eager,
            deferred=deferred,
        )
    else:
        memory = KVMemory(table, pages, page_size, parts["retention"], reuse)
    scheduler = Scheduler(
        table,
        memory,
        parts["order"],
        parts["admission"],
        parts["victim"],
        max_running=max_running,
        max_length=max_length or pages * page_size,
    )
    executor = NullExecutor(pages, page_size, vocabulary, Ticks(), reserved=reserved, fail=fail)
    return Engine(table, memory, scheduler, executor)


def request(name: str, prompt, max_tokens: int = 8, end_ids=(END,), **params) -> Request:
    return Request(
        id=name,
        prompt=np.asarray(prompt, dtype=np.int32),
        params=SamplingParams(temperature=0.0, max_tokens=max_tokens, **params),
        end_ids=end_ids,
    )


def expected(engine: Engine, request: Request) -> list[int]:
    """The answer by the plain definition: one token after the other, no pages, no batch."""
    ids, null = request.prompt.tolist(), engine.executor
    ends = () if request.params.ignore_eos else request.end_ids
    stops = {*ends, *request.params.stop_token_ids}
    limit = min(len(ids) + request.params.max_tokens, engine.scheduler.max_length)
    floor = len(ids) + request.params.min_tokens
    while len(ids) < limit:
        ids.append(next_token(np.array(ids, dtype=np.int32), null.vocabulary, getattr(null, "reserved", 0)))
        if ids[-1] in stops and len(ids) > floor:
            break
    return ids[len(request.prompt) :]


def drain(engine: Engine, check: bool = True, most: int = 100_000) -> dict[str, Finished]:
    """Step until idle; every answer by request id, each exactly once."""
    answers: dict[str, Finished] = {}
    for step in range(most):
        if engine.idle:
            return answers
        for finished in engine.step(float(step)).finished:
            assert finished.request.id not in answers, "answered twice"
            answers[finished.request.id] = finished
        if check:
            engine.check()
    raise AssertionError("the engine never became idle")
