"""What other orders and reuse policies would compute of the same rows, beside the one that is chosen."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.policies import make
from shoal.core.policy import ForestView, Reuse
from shoal.engine.costs import NULL_COST, Costed
from shoal.jobs.ending import Interrupted
from shoal.jobs.job import Planned, Stopping, Watcher
from shoal.jobs.plan import Planner
from shoal.jobs.spool import Spool
from shoal.reuse.planning import make_plan

BUDGET = 3.0
"""Seconds that each dry run may take."""
MOST_REQUESTS = 10_000
"""Beyond this, what only a dry run can tell is not looked for."""
EXACT, REHEARSED, UNKNOWN = "exact", "dry run", "not computed: too many rows"

PLANNED = {"one level, batchllm": ("policy", "batchllm"), "every level, forest": ("reuse", "forest")}
"""Policies under which the count is exact, by what they do."""
CACHED = {"as they come, LRU cache": "arrival", "sorted, LRU cache": "sorted"}
"""Reuse policies that leave sharing to a cache in the pool at hand."""


class Alternative(msgspec.Struct, kw_only=True):
    """Prompt tokens that another way would compute. how: EXACT, REHEARSED or UNKNOWN, then without tokens.
    chosen: it is the way of the job's own plan."""

    name: str
    how: str
    tokens: int | None = None
    chosen: bool = False


class Alternatives:
    """Collected while a job is planned (``look``) and afterwards (``table``).

    Args:
        planner: that of the job.
    """

    def __init__(self, planner: Planner, stopping: Stopping) -> None:
        self._planner = planner
        self._stopping = stopping
        self._policies: dict[str, Reuse] = {}
        for name, (seam, specification) in PLANNED.items():
            policy = make(seam, specification)
            assert isinstance(policy, Reuse), specification
            self._policies[name] = policy
        self._totals = dict.fromkeys(PLANNED, 0)

    def _is_chosen(self, policy: Reuse) -> bool:
        """Whatever its parameters: the plan's own figures stand for it."""
        return type(policy) is type(self._planner.reuse)

    def look(self, forest: ForestView) -> None:
        """One more window of rows."""
        for name, policy in self._policies.items():
            if not self._is_chosen(policy):
                self._totals[name] += make_plan(policy, forest).total

    def table(
        self,
        cost: Costed,
        spool: Spool,
        done: npt.NDArray[np.bool_],
        planned: Planned,
        watcher: Watcher,
    ) -> list[Alternative]:
        """All of them, those that compute most first.

        Raises:
            OperatorError: the spool cannot be read.
            Interrupted: asked to stop.
        """
        found = [Alternative(name="as they come, nothing shared", how=EXACT, tokens=planned.prompt_tokens)]
        if not planned.shares:
            found[0].chosen = True
            return found
        for name, reuse in CACHED.items():
            tokens = self._rehearsed(reuse, cost, spool, done, planned, watcher)
            found.append(Alternative(name=name, how=REHEARSED if tokens else UNKNOWN, tokens=tokens))
        for name, policy in self._policies.items():
            chosen = self._is_chosen(policy)
            tokens = planned.computed if chosen else self._totals[name]
            found.append(Alternative(name=name, how=EXACT, tokens=tokens, chosen=chosen))
        if not any(row.chosen for row in found):
            how = (
                EXACT if planned.exact else REHEARSED if planned.rehearsed else "if the cache kept everything"
            )
            found.append(Alternative(name=planned.policy, how=how, tokens=planned.computed, chosen=True))
        return found

    def _rehearsed(
        self,
        reuse: str,
        costed: Costed,
        spool: Spool,
        done: npt.NDArray[np.bool_],
        planned: Planned,
        watcher: Watcher,
    ) -> int | None:
        """Prompt tokens computed under an LRU cache in this pool; None where that takes too long to say."""
        if planned.requests > MOST_REQUESTS:
            return None
        changes: dict[str, Any] = {"policy": None, "reuse": reuse, "retention": "lru"}
        config = msgspec.structs.replace(costed.prepared.config, **changes)
        prepared = replace(costed.prepared, config=config)
        planner = Planner(prepared, self._planner.expected_tokens)
        course, figures = planner.plan(spool, done, watcher, self._stopping)
        if figures.computed == figures.prompt_tokens:
            return figures.computed
        end = time.perf_counter() + BUDGET

        def late() -> bool:
            return self._stopping() or time.perf_counter() > end

        try:
            priced = Costed(prepared, costed.cost or NULL_COST)
            planner.predict(priced, spool, course, figures, late, budget=10 * BUDGET)
        except Interrupted:
            if self._stopping():
                raise
            return None
        return figures.computed if figures.rehearsed else None
