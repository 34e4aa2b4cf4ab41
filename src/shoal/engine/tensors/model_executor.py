"""The executor with a model behind it: a plan in, one pass of the model, sampled tokens out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from shoal.core.errors import InternalError, ShoalError
from shoal.core.plan import EMIT_LOGPROBS, I32, I64, ScoredTokens, StepPlan, StepResult
from shoal.core.request import Request
from shoal.engine.tensors.sampler import SampledRows, Sampler
from shoal.memory.tensors.places import Places
from shoal.models.architecture import Architecture

LOGIT_ROWS = 64
"""Rows whose logits exist at once: 64 MiB for a vocabulary of 262,144."""


class Computes(Protocol):
    """What computes a model: ``shoal.models.tensors.model.Model``, or the compiled one in its place."""

    architecture: Architecture
    invariant: bool

    def allocate_cache(self, pages: int, page_size: int) -> Any: ...

    def page_bytes(self, page_size: int) -> int: ...

    def cache_in(self, room: torch.Tensor, pages: int, depth: int, page_size: int) -> Any: ...

    def inputs(self, plan: StepPlan, cache: Any) -> Any: ...

    def forward(self, inputs: Any, cache: Any) -> torch.Tensor: ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...

    def best(self, hidden: torch.Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]: ...


class ModelExecutor:
    """Implements ``shoal.core.executor.Executor``; a plan is finished when ``submit`` returns.

    Args:
        pages, page_size: of the KV pool.
        clock: seconds, for the time a result is ready.
        places: (how many, pages each) that pages are mapped into, if any.
        record_margins: keep how close the two best logits of each choice were.
    """

    def __init__(
        self,
        model: Computes,
        sampler: Sampler,
        pages: int,
        page_size: int,
        clock: Callable[[], float],
        *,
        places: tuple[int, int] | None = None,
        record_margins: bool = False,
    ) -> None:
        self.model = model
        self.invariant = model.invariant
        self.sampler = sampler
        self.pages = pages
        self.page_size = page_size
        self.vocabulary = model.architecture.embed.vocabulary
        self.clock = clock
        self.record_margins = record_margins
        self.places: Places | None = None
        if places is None:
            self.cache = model.allocate_cache(pages, page_size)
        else:
            self.places = Places(pages, model.page_bytes(page_size), *places)
            self.cache = model.cache_in(self.places.room, pages, places[1], page_size)
        self._prompt: dict[int, int] = {}
        self._ready: list[StepResult] = []

    def open(self, slot: int, request: Request) -> None:
        self.sampler.open(slot, request)
        self._prompt[slot] = len(request.prompt)

    def close(self, slot: int) -> None:
        self.sampler.close(slot)
        self._prompt.pop(slot, None)

    def submit(self, plan: StepPlan) -> None:
        try:
            self._place(plan)
        except Exception as error:
            self._ready.append(self._failed(plan, error))
            return
        for source, target, slots in plan.moves.tolist():
            self.cache.move(source, target, slots)
        hidden, failures = self._forward(plan)
        try:
            result = self._emit(plan, hidden, failures)
        except Exception as error:
            result = self._failed(plan, error)
        self._ready.append(result)

    def poll(self) -> list[StepResult]:
        ready, self._ready = self._ready, []
        return ready

    def _place(self, plan: StepPlan) -> None:
        if self.places is not None:
            self.places.map(plan.maps)
            self.places.begin(plan.ahead)

    def _forward(self, plan: StepPlan) -> tuple[torch.Tensor | None, dict[int, Exception]]:
        """Hidden vectors of all rows, and the runs that failed; None if all did."""
        try:
            return self.model.forward(self.model.inputs(plan, self.cache), self.cache), {}
        except Exception as error:
            if plan.run_count == 1:
                return None, {0: _as_internal(plan, error)}
            return self._one_by_one(plan)

    def _one_by_one(self, plan: StepPlan) -> tuple[torch.Tensor | None, dict[int, Exception]]:
        """A step that broke, computed again run by run: one broken run takes no other with it but those
        that read what it was to write, and these come after it in the plan."""
        hidden: torch.Tensor | None = None
        failures: dict[int, Exception] = {}
        lost: set[int] = set()
        for run in range(plan.run_count):
            part = plan.only(run)
            try:
                if lost.intersection(part.pages.tolist()):
                    raise InternalError(f"step {plan.step}: a run that this one reads from failed")
                rows = self.model.forward(self.model.inputs(part, self.cache), self.cache)
            except Exception as error:
                failures[run] = _as_internal(plan, error)
                lost.update(part.pages[part.position[0] // self.page_size :].tolist())
                continue
            if hidden is None:
                hidden = rows.new_zeros((plan.row_count, rows.shape[1]))
            hidden[plan.first_row[run] : plan.first_row[run] + len(rows)] = rows
        return hidden, failures

    def _emit(
        self, plan: StepPlan, hidden: torch.Tensor | None, failures: dict[int, Exception]
    ) -> StepResult:
        rows = plan.emitting_rows()
        run = plan.run_of_row()[rows]
        if hidden is None:
            return self._failed(plan, next(iter(failures.values())))
        sampled = []
        only_best = self._only_best(plan, rows, run)
        most = len(rows) if only_best else LOGIT_ROWS
        for start in range(0, len(rows), most or 1):
            part = slice(start, start + most)
            chosen = hidden
            if len(rows[part]) < plan.row_count:
                chosen = hidden.index_select(0, torch.from_numpy(rows[part]).to(hidden.device))
            if only_best:
                sampled.append(self.sampler.take(*self.model.best(chosen)))
            else:
                sampled.append(self._sample(plan, chosen, rows[part], run[part]))
            for row, error in sampled[-1].failures.items():
                failures.setdefault(int(run[start + row]), error)
        return StepResult(
            plan.step,
            _joined([part.tokens for part in sampled], np.int32),
            self.clock(),
            scored=_scored(plan, rows, sampled),
            margins=_joined([part.margins for part in sampled], np.float32) if self.record_margins else None,
            complete=_complete(sampled),
            failures=failures,
        )

    def _failed(self, plan: StepPlan, error: Exception) -> StepResult:
        """Every run of the plan has failed."""
        nothing = np.zeros(len(plan.emitting_rows()), dtype=np.int32)
        error = _as_internal(plan, error)
        return StepResult(
            plan.step, nothing, self.clock(), failures=dict.fromkeys(range(plan.run_count), error)
        )

    def _only_best(self, plan: StepPlan, rows: I64, run: I32) -> bool:
        """Whether nothing but the largest logit of each row is asked for."""
        if self.record_margins or np.any(plan.emit[rows] == EMIT_LOGPROBS):
            return False
        return self.sampler.plain(plan.sequence[run], plan.target[rows])

    def _sample(self, plan: StepPlan, hidden: torch.Tensor, rows: I64, run: I32) -> SampledRows:
        slots = plan.sequence[run]
        prompt = np.array([self._prompt[int(slot)] for slot in slots], dtype=np.int64)
        return self.sampler.sample(
            self.model.logits(hidden),
            slots,
            plan.position[rows] + 1 - prompt,
            plan.target[rows],
            plan.emit[rows] == EMIT_LOGPROBS,
            self.record_margins,
        )


def _as_internal(plan: StepPlan, error: Exception) -> Exception:
    if isinstance(error, ShoalError):
        return error
    failure = InternalError(f"step {plan.step} failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _joined(parts: list[Any], dtype: type) -> npt.NDArray[Any]:
    if len(parts) == 1:
        return np.asarray(parts[0], dtype=dtype)
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype=dtype)


def _complete(sampled: list[SampledRows]) -> npt.NDArray[np.bool_] | None:
    if all(part.complete is None for part in sampled):
        return None
    columns = [np.zeros(len(p.tokens), dtype=bool) if p.complete is None else p.complete for p in sampled]
    return _joined(columns, np.bool_)


def _scored(plan: StepPlan, rows: I64, sampled: list[SampledRows]) -> ScoredTokens | None:
    """The log-probabilities of all slices together; slices with fewer alternatives are padded."""
    parts: list[Any] = [part for part in sampled if part.logprob is not None]
    if not parts:
        return None
    most = max(part.top_ids.shape[1] for part in parts)

    def wide(columns: npt.NDArray[Any], empty: float) -> npt.NDArray[Any]:
        return np.pad(columns, ((0, 0), (0, most - columns.shape[1])), constant_values=empty)

    return ScoredTokens(
        row=rows[plan.emit[rows] == EMIT_LOGPROBS],
        logprob=np.concatenate([part.logprob for part in parts]),
        rank=np.concatenate([part.rank for part in parts]),
        top_ids=np.concatenate([wide(part.top_ids, 0) for part in parts]),
        top_logprobs=np.concatenate([wide(part.top_logprobs, -np.inf) for part in parts]),
    )
