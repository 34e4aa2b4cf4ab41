"""The executor with a model behind it: a plan in, one pass of the model, sampled tokens out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shoal.core.errors import InternalError
from shoal.core.plan import EMIT_LOGPROBS, I32, I64, ScoredTokens, StepPlan, StepResult
from shoal.core.request import Request
from shoal.engine.tensors.sampler import SampledRows, Sampler
from shoal.models.tensors.model import Model

LOGIT_ROWS = 64
"""Rows whose logits exist at once: 64 MiB for a vocabulary of 262,144."""


class ModelExecutor:
    """Implements ``shoal.core.executor.Executor``; a plan is finished when ``submit`` returns.

    Args:
        pages, page_size: of the KV pool.
        clock: seconds, for the time a result is ready.
        record_margins: keep how close the two best logits of each choice were.
    """

    # Products come from torch's libraries, whose last bits may change with the number of rows.
    invariant = False

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        pages: int,
        page_size: int,
        clock: Callable[[], float],
        *,
        record_margins: bool = False,
    ) -> None:
        self.model = model
        self.sampler = sampler
        self.pages = pages
        self.page_size = page_size
        self.vocabulary = model.architecture.embed.vocabulary
        self.clock = clock
        self.record_margins = record_margins
        self.cache = model.allocate_cache(pages, page_size)
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
            result = self._run(plan)
        except Exception as error:
            failure = InternalError(f"step {plan.step} failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            result = StepResult(
                plan.step,
                np.zeros(len(plan.emitting_rows()), dtype=np.int32),
                self.clock(),
                failures=dict.fromkeys(range(plan.run_count), failure),
            )
        self._ready.append(result)

    def poll(self) -> list[StepResult]:
        ready, self._ready = self._ready, []
        return ready

    def _run(self, plan: StepPlan) -> StepResult:
        hidden = self.model.forward(self.model.inputs(plan, self.page_size), self.cache)
        rows = plan.emitting_rows()
        run = plan.run_of_row()[rows]
        failures: dict[int, Exception] = {}
        sampled = []
        for start in range(0, len(rows), LOGIT_ROWS):
            part = slice(start, start + LOGIT_ROWS)
            sampled.append(self._sample(plan, hidden, rows[part], run[part]))
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

    def _sample(self, plan: StepPlan, hidden: torch.Tensor, rows: I64, run: I32) -> SampledRows:
        logits = self.model.logits(hidden.index_select(0, torch.from_numpy(rows).to(hidden.device)))
        slots = plan.sequence[run]
        prompt = np.array([self._prompt[int(slot)] for slot in slots], dtype=np.int64)
        return self.sampler.sample(
            logits,
            slots,
            plan.position[rows] + 1 - prompt,
            plan.target[rows],
            plan.emit[rows] == EMIT_LOGPROBS,
            self.record_margins,
        )


def _joined(parts: list[Any], dtype: type) -> npt.NDArray[Any]:
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
