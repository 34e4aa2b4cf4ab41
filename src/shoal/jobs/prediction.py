"""A job rehearsed on simulated time: how long it will take, and how much memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

from shoal.core.request import Request, fan_out
from shoal.engine.costs import Costed
from shoal.engine.dry_run import Prediction, expected, predict_job
from shoal.jobs.course import Course, request_of
from shoal.jobs.ending import Interrupted
from shoal.jobs.job import Planned, Stopping
from shoal.jobs.lengths import AnswerLengths
from shoal.jobs.spool import Spool, unpack


def rehearse(
    costed: Costed,
    spool: Spool,
    course: Course,
    planned: Planned,
    lengths: AnswerLengths,
    stopping: Stopping,
    budget: float,
) -> Prediction:
    """Run the course through on simulated time, its answers as long as they are expected to be.

    Args:
        costed: what steps cost must be known.
        budget: seconds that this may take, about; a longer job is looked at in places.

    Raises:
        OperatorError: the spool cannot be read.
        Interrupted: asked to stop.
    """
    assert costed.cost is not None, "a rehearsal without what steps cost"
    end_ids = costed.prepared.model.end_ids

    def timer() -> float:
        if stopping():
            raise Interrupted
        return time.perf_counter()

    def read(start: int, stop: int) -> Iterator[Request]:
        # Where rows ask for several answers, the stretch is about the one asked for.
        left = stop - start
        for turn in course.turns(start * len(course) // max(1, planned.requests)):
            row = spool.read(turn.row)
            answer = lengths.of(row.sampling).tokens
            request = request_of(row, unpack(row.sampling), turn, end_ids)
            for part in fan_out(expected(request, answer)):
                if left == 0:
                    return
                left -= 1
                yield part

    fed_back = planned.answer_tokens - planned.requests
    return predict_job(
        costed.prepared,
        costed.cost,
        planned.requests,
        read,
        planned.computed + fed_back,
        planned.answer_tokens,
        budget=budget,
        timer=timer,
    )
