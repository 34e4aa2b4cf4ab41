"""A list of requests as a job: planned at once, and handed back in the order in which they are to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from shoal.core.policy import Reuse
from shoal.core.request import Request
from shoal.reuse.forest import forest_of
from shoal.reuse.hashes import PageHashes
from shoal.reuse.planning import JobPlan, make_plan


@dataclass(frozen=True, slots=True)
class PlannedRequests:
    """``requests[i]`` is the one to run i-th, place ``plan.order[i]`` of those handed in. It carries what it
    shares (``path``, ``domain``, ``shared``)."""

    plan: JobPlan
    requests: tuple[Request, ...]

    @property
    def nodes(self) -> range:
        """The node numbers that this plan uses."""
        return range(self.plan.first_node, self.plan.first_node + len(self.plan.depth))


def plan_requests(
    policy: Reuse, requests: Sequence[Request], page_size: int, longest: int, first_node: int = 0
) -> PlannedRequests:
    """Plan a list of requests that can all be answered.

    Args:
        requests: each with at least one prompt token; ``params.n`` counts.
        longest: tokens of prompt and answer together, for requests without ``max_tokens``.
        first_node: a number above those of all plans that the engine was given before.

    Raises:
        InternalError: as ``make_plan``.
    """
    hashes = PageHashes(page_size)
    lengths = np.array([len(request.prompt) for request in requests], dtype=np.int32)
    for row, (request, length) in enumerate(zip(requests, lengths)):
        ids = request.prompt
        if request.params.prompt_logprobs is not None:
            # It reads nothing that others list, and what it lists depends on who came before it: it is left
            # out of all sharing, with a beginning that is nobody else's.
            ids = np.concatenate([[-1 - row], ids[1:]]).astype(np.int32)
        hashes.add(ids, np.array([length], dtype=np.int32))
    room = longest - lengths
    asked = [request.params.max_tokens for request in requests]
    answer = np.array([left if most is None else min(most, left) for most, left in zip(asked, room)])
    copies = np.array([request.params.n for request in requests])
    blind = np.array([request.params.prompt_logprobs is not None for request in requests], dtype=np.bool_)
    forest = forest_of(hashes, lengths, answer.astype(np.int32), copies.astype(np.int32), blind)
    plan = make_plan(policy, forest, first_node)
    return PlannedRequests(plan, tuple(_with_plan(requests[row], plan, row) for row in plan.order.tolist()))


def _with_plan(request: Request, plan: JobPlan, row: int) -> Request:
    alone = request.params.prompt_logprobs is not None
    found: dict[str, Any] = {
        "path": () if alone else plan.path(row),
        "domain": plan.domain(row),
        "shared": 0 if alone else plan.shared(row),
    }
    return msgspec.structs.replace(request, **found)
