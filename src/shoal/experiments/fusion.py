"""What to expect of fused steps by arithmetic alone, and executors that look at how steps are fused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.executor import Executor
from shoal.core.plan import EMIT_TOKEN, I32, SAMPLE, StepPlan, StepResult
from shoal.core.request import Request, SamplingParams
from shoal.memory.layout import Layout
from shoal.memory.slots import SlotMemory

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def iterations(times: F64, tokens: int, step: float) -> F64:
    """Steps in which anybody runs, where every request takes ``tokens`` steps and one may join in each.

    Args:
        times: (draws, requests), seconds of arrival, ascending in each draw. step: seconds of a step.

    Returns:
        (draws,). A request joins at the first step that begins after it came and that nobody else joins;
        steps begin when somebody comes to an idle engine, and follow each other while it is not.
    """
    total = np.zeros(len(times))
    began, joined = times[:, 0].copy(), np.zeros(len(times))
    for arrived in times.T[1:]:
        joins = np.maximum(np.ceil((arrived - began) / step), joined + 1)
        over = joins > joined + tokens
        total += np.where(over, joined + tokens, 0)
        began = np.where(over, arrived, began)
        joined = np.where(over, 0, joins)
    return total + joined + tokens


def fused_rows(lengths: I64) -> tuple[I64, I64]:
    """Rows that all steps together compute without and with compaction, where all begin together.

    Args:
        lengths: (draws, places), steps that each place is used.

    Returns:
        Two of shape (draws,). Without compaction a step computes all from the first place in use to the last.
    """
    places = lengths.shape[1]
    used = lengths[:, :, None] > np.arange(lengths.max())
    first, last = used.argmax(1), places - 1 - used[:, ::-1].argmax(1)
    return ((last - first + 1) * used.any(1)).sum(1), lengths.sum(1)


class Watched:
    """An executor that looks at every plan before it is computed. ``memory`` is set once it is known.

    Attributes:
        span, held: of each step, the places of the window and those in use.
        doubled: plans in which two sequences have one place. outside: places read outside the window.
        interior: ends that left a hole in the middle; counted where all sequences run in every step.
        steps: by request id, (number of the step, first position, rows) of each of its runs.
    """

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.memory: Layout | None = None
        self.span: list[int] = []
        self.held: list[int] = []
        self.doubled = self.outside = self.interior = 0
        self.steps: dict[str, list[tuple[int, int, int]]] = {}
        self.prompts: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._places: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def open(self, slot: int, request: Request) -> None:
        self._names[slot] = request.id
        self.prompts[request.id] = len(request.prompt)
        self.inner.open(slot, request)

    def submit(self, plan: StepPlan) -> None:
        assert isinstance(self.memory, SlotMemory)
        self.span.append(self.memory.span)
        self.held.append(self.memory.ledger.held)
        places = plan.pages[plan.first_page]
        self.doubled += len(np.unique(places)) < plan.run_count
        self.outside += int(np.count_nonzero((places < self.memory.lo) | (places >= self.memory.hi)))
        names = [self._names[slot] for slot in plan.sequence.tolist()]
        self._ends(names)
        self._places = dict(zip(names, places.tolist()))
        for name, at, rows in zip(names, plan.position[plan.first_row].tolist(), plan.rows.tolist()):
            self.steps.setdefault(name, []).append((len(self.span), at, rows))
        self.inner.submit(plan)

    def joined_after(self) -> list[int]:
        """For each request of several tokens, steps from the one with its prompt's last row to its next."""
        return [
            steps[i + 1][0] - step
            for name, steps in self.steps.items()
            for i, (step, at, rows) in enumerate(steps[:-1])
            if at + rows == self.prompts[name]
        ]

    def _ends(self, names: list[str]) -> None:
        staying = [self._places[name] for name in names if name in self._places]
        if staying:
            gone = [place for name, place in self._places.items() if name not in set(names)]
            self.interior += sum(min(staying) < place < max(staying) for place in gone)


class WholeWindow:
    """An executor that computes every place of the window, holes too: a loop fused over rows as they lie.

    A hole computes the last row of whoever left it again, and chooses a token for it that nobody takes.
    ``memory`` is set once it is known.
    """

    NOBODY = 1023
    """A slot of the sampler that no sequence has."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.memory: Layout | None = None
        self._depth = np.zeros(inner.pages, dtype=np.int32)
        self._own = 0
        greedy = SamplingParams(temperature=0.0)
        inner.open(self.NOBODY, Request(id="", prompt=np.zeros(1, dtype=np.int32), params=greedy))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def submit(self, plan: StepPlan) -> None:
        assert isinstance(self.memory, SlotMemory)
        places = plan.pages[plan.first_page]
        self._depth[places] = plan.position[plan.first_row + plan.rows - 1]
        window = np.arange(self.memory.lo, self.memory.hi, dtype=np.int32)
        self._own = len(plan.emitting_rows())
        self.inner.submit(self._with(plan, np.setdiff1d(window, places)))

    def poll(self) -> list[StepResult]:
        return [replace(result, tokens=result.tokens[: self._own]) for result in self.inner.poll()]

    def _with(self, plan: StepPlan, holes: I32) -> StepPlan:
        def more(column: I32, values: Any) -> I32:
            return np.concatenate([column, np.broadcast_to(np.int32(values), holes.shape)]).astype(np.int32)

        index = np.arange(len(holes))
        return replace(
            plan,
            token=more(plan.token, 0),
            position=more(plan.position, self._depth[holes]),
            emit=more(plan.emit, EMIT_TOKEN),
            target=more(plan.target, SAMPLE),
            sequence=more(plan.sequence, self.NOBODY),
            first_row=more(plan.first_row, plan.row_count + index),
            rows=more(plan.rows, 1),
            first_page=more(plan.first_page, len(plan.pages) + index),
            page_count=more(plan.page_count, 1),
            pages=more(plan.pages, holes),
        )
