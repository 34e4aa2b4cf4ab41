"""Who needs to know what steps cost, and when it is worth measuring."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shoal.core.cost import Cost, CostTable, Paced
from shoal.core.errors import InternalError, OperatorError
from shoal.core.executor import Executor
from shoal.engine.build import Prepared, assemble, step_rows
from shoal.engine.calibrate import BUDGET, Calibration, Progress, calibrate, pace
from shoal.engine.calibration import save
from shoal.engine.model import StoredModel

if TYPE_CHECKING:
    from shoal.engine.engine import Engine

NULL_COST = CostTable(
    row_counts=(1, 512), row_seconds=(1.5e-4, 2.5e-4), emit_counts=(1, 512), emit_seconds=(1e-5, 5e-5)
)
"""The null executor's arithmetic; it is not worth measuring."""
CRUDE_RATE = 30e9
"""Operations per second that any machine reaches, to guess with before anything is measured."""
WORTH = 30.0
"""Seconds of guessed work above which measuring first is worth its own time."""


@dataclass(frozen=True, slots=True)
class Costed:
    """An engine's plan together with what its steps cost, None where that is not known.

    ``engine`` is there if measuring had to load it; it takes its decisions by the same cost.
    """

    prepared: Prepared
    cost: Cost | None
    engine: Engine | None = None


def cost_for(
    prepared: Prepared,
    start: Callable[[Prepared], Engine],
    tokens: int | None,
    *,
    about_to_run: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda what, share: None,
    budget: float = BUDGET,
) -> Costed:
    """What steps cost: as measured before, or measured now if the work is worth it.

    Args:
        start: loads the engine (``shoal.engine.build.start``); called only if steps are to be measured.
        tokens: that will be computed; None measures whatever the work.
        about_to_run: the engine will be loaded anyway, so a long job is told at the machine's speed of the
            moment: a few steps are measured again.
        say: told, once, that steps are measured, or why they could not be kept.
        progress: see ``shoal.engine.calibrate``; it may raise to stop at once.
    """
    if prepared.architecture is None:
        return Costed(prepared, NULL_COST)
    short = tokens is not None and guess(prepared, tokens) < WORTH
    if short or (prepared.cost is not None and not about_to_run):
        return Costed(prepared, prepared.cost)
    if isinstance(prepared.cost, CostTable):
        progress("measuring again", 0.0)
        return paced(prepared, start(prepared), prepared.cost)
    say(f"measuring what steps cost here, once for this model and machine (about {budget:.0f} s)")
    engine = start(prepared)
    found = measure(prepared, engine, progress=progress, budget=budget)
    try:
        keep(prepared, found)
    except OperatorError as error:
        say(str(error))
    return with_cost(prepared, engine, found.table)


def guess(prepared: Prepared, tokens: int) -> float:
    """Seconds for so many tokens, crudely: two operations a token and parameter, those left out that are
    looked up, not multiplied."""
    assert prepared.architecture is not None
    embed = prepared.architecture.embed
    parameters = prepared.architecture.parameter_count - embed.vocabulary * embed.hidden
    return 2.0 * parameters * tokens / CRUDE_RATE


def measure(
    prepared: Prepared,
    engine: Engine,
    *,
    progress: Progress = lambda what, share: None,
    budget: float = BUDGET,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Calibrate with the executor of ``engine``, whose pages are written over.

    Raises:
        InternalError: the engine has work, or a step failed.
    """
    return calibrate(
        *_measurable(prepared, engine),
        budget=budget,
        masks=_has_masks(prepared.model),
        progress=progress,
        clock=clock,
    )


def paced(
    prepared: Prepared, engine: Engine, table: CostTable, clock: Callable[[], float] = time.perf_counter
) -> Costed:
    """``table`` at the speed of the moment. Decisions are still taken by the table itself, so that they are
    the same at any speed.

    Raises:
        InternalError: as ``measure``.
    """
    factor = pace(*_measurable(prepared, engine), table, clock=clock)
    fresh = assemble(prepared.config, engine.executor, prepared.model, table)
    return Costed(prepared, Paced(table, factor), fresh)


def _measurable(prepared: Prepared, engine: Engine) -> tuple[Executor, int, int]:
    """Executor, tokens of the longest sequence, and bytes of a token's K/V."""
    if not engine.idle or prepared.architecture is None:
        raise InternalError("only an idle engine with a model can be calibrated")
    item = 2 if prepared.dtype == "bfloat16" else 4
    return engine.executor, prepared.model.max_model_len, prepared.architecture.kv_bytes_per_token(item)


def keep(prepared: Prepared, found: Calibration) -> str:
    """Store a calibration; returns where.

    Raises:
        OperatorError: the cache folder cannot be written.
    """
    assert prepared.identity is not None
    return str(save(prepared.identity, prepared.model.name, found.table, found.steps, found.seconds))


def with_cost(prepared: Prepared, engine: Engine, cost: Cost) -> Costed:
    """The same engine deciding by ``cost``. Its books begin anew: measuring has written over its pages."""
    rows = step_rows(prepared.config, cost, prepared.pages)
    line = f"steps measured just now, {rows} rows each at most"
    known = replace(prepared, cost=cost, choices=(*prepared.choices[:-1], line))
    return Costed(known, cost, assemble(known.config, engine.executor, known.model, cost))


def _has_masks(model: object) -> bool:
    """Whether answers of this model can be constrained: ids can be computed without a tokenizer."""
    if not isinstance(model, StoredModel):
        return False
    try:
        return model.tokenizer is not None
    except OperatorError:
        return False
