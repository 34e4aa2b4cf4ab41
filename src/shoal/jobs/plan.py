"""The second phase of a job: which rows run when, what they share, and how many tokens that computes.

Made from the spool over the rows that are left to run, again in every session: a job that goes on plans what
remains of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shoal.core.policies import make, specification
from shoal.core.policy import ForestView, PageView, Retention, Reuse
from shoal.engine.build import Prepared, policies
from shoal.engine.costs import Costed, cost_for
from shoal.jobs.course import Course, rows_to_run
from shoal.jobs.ending import Interrupted
from shoal.jobs.forests import WINDOW_PAGES, ForestReader
from shoal.jobs.job import Planned, Stopping, Watcher
from shoal.jobs.lengths import AnswerLengths
from shoal.jobs.prediction import rehearse
from shoal.jobs.spool import Spool
from shoal.reuse.arrival import Arrival
from shoal.reuse.planning import JobPlan, make_plan
from shoal.reuse.tree import Tree

if TYPE_CHECKING:
    from shoal.engine.engine import Engine

BUDGET, NULL_BUDGET = 5.0, 1.0
"""Seconds that a dry run may take, about; of the null model, whose steps are not worth foretelling, fewer."""
Look = Callable[[ForestView], None]


class Planner:
    """Plans what is left of a job for one engine.

    Args:
        expected_tokens: tokens expected of an answer that may end by itself; None takes ``max_tokens``.
        window_pages: pages of prompts planned together at most.
    """

    def __init__(
        self, prepared: Prepared, expected_tokens: int | None = None, window_pages: int = WINDOW_PAGES
    ) -> None:
        config = prepared.config
        chosen = policies(config)
        self.shares = config.prefix_reuse
        self.reuse: Reuse = chosen.reuse if self.shares else Arrival()
        # A planned prefix lasts until its last member if it is pinned, and rows run in planned order as long
        # as nobody sorts again.
        self._kept = _pins(chosen.retention) and chosen.order == make("order", "fcfs")
        self.prepared = prepared
        self.expected_tokens = expected_tokens
        self.lengths = AnswerLengths(prepared.model, expected_tokens)
        self._reader = ForestReader(self.lengths, config.page_size, self.shares, window_pages)

    def plan(
        self,
        spool: Spool,
        done: npt.NDArray[np.bool_],
        watcher: Watcher,
        stopping: Stopping = lambda: False,
        look: Look | None = None,
    ) -> tuple[Course, Planned]:
        """The course of the rows that are left, and its figures.

        Args:
            done: shape (rows,), bool: rows that have their line.
            look: shown every forest, as long as it is there.

        Raises:
            OperatorError: the spool cannot be read.
            Interrupted: asked to stop.
        """
        windows: list[tuple[npt.NDArray[np.int32], JobPlan]] = []
        figures = Planned(
            policy=specification(self.reuse),
            shares=self.shares,
            exact=True,
            pages=self.prepared.pages,
            page_size=self.prepared.config.page_size,
        )
        for rows, forest, bounded in self._reader.windows(spool, rows_to_run(spool, done), watcher, stopping):
            plan = make_plan(self.reuse, forest, figures.nodes)
            windows.append((rows, plan))
            self._count(figures, plan, forest, bounded)
            if look is not None:
                look(forest)
        return Course(windows), figures

    def cost(
        self,
        start: Callable[[Prepared], Engine],
        planned: Planned,
        watcher: Watcher,
        stopping: Stopping,
        about_to_run: bool = False,
    ) -> Costed:
        """What steps cost here; measured now, on an engine that is loaded for it, where the job is worth it.

        Args:
            about_to_run: the engine is needed anyway.

        Raises:
            OperatorError: the engine cannot be loaded.
            Interrupted: asked to stop.
        """

        def progress(what: str, share: float) -> None:
            watcher.measuring(what, share)
            if stopping():
                raise Interrupted

        tokens = planned.computed + planned.answer_tokens
        return cost_for(
            self.prepared, start, tokens, about_to_run=about_to_run, say=watcher.say, progress=progress
        )

    def predict(
        self,
        costed: Costed,
        spool: Spool,
        course: Course,
        planned: Planned,
        stopping: Stopping,
        budget: float | None = None,
    ) -> None:
        """Add to ``planned`` what a dry run of its course says, in about ``budget`` seconds.

        Raises:
            OperatorError: the spool cannot be read.
            Interrupted: asked to stop.
        """
        if budget is None:
            budget = NULL_BUDGET if costed.prepared.architecture is None else BUDGET
        found = rehearse(costed, spool, course, planned, self.lengths, stopping, budget)
        planned.seconds = found.seconds
        planned.peak_pages = found.peak_pages
        planned.preemptions = found.preemptions
        if found.exact and not planned.exact:
            planned.computed, planned.rehearsed = found.prompt, True

    def _count(self, figures: Planned, plan: JobPlan, forest: ForestView, bounded: int) -> None:
        copies = forest.copies.astype(np.int64)
        figures.windows += 1
        figures.rows += len(copies)
        figures.requests += int(copies.sum())
        figures.prompt_tokens += plan.tokens
        figures.computed += plan.total
        figures.answer_tokens += int((copies * forest.answer).sum())
        figures.bounded += bounded
        figures.nodes += len(forest.parent)
        figures.levels = max(figures.levels, len(Tree(forest).levels))
        figures.exact &= (plan.pinned and self._kept) or plan.total == plan.tokens


def _pins(retention: Retention) -> bool:
    """Whether a page that somebody will come for stays."""
    retention.bind(None, np.random.default_rng(0))
    one = np.ones(1, dtype=np.int32)
    view = PageView(now=0.0, page=one, depth=one, last_used=np.zeros(1), uses=one, wanted=one)
    return bool(np.isposinf(retention.worth(view)).all())
