"""What a job is, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from shoal.core.request import SamplingParams
from shoal.jobs.ending import ANSWERED, SOME_FAILED
from shoal.jobs.files import JobFiles
from shoal.jobs.sources import LINE_LIMIT
from shoal.jobs.templates import Layout

if TYPE_CHECKING:
    from shoal.engine.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Job:
    """A file of requests and everything about it that changes its answers.

    Attributes:
        form: ``jsonl``, ``csv``, ``tsv`` or ``parquet``.
        seed: rows that name no seed get one from this and their id.
        template_arguments: further names for the chat template; a row's own come before them.
        parameters: all that must be the same when the job goes on, by name, as JSON values.
        limit: run only so many rows, the first ones.
        line_limit: longest line, in bytes.
        strict: run nothing if any row is bad.
        ordered: at the end, put the results in input order.
        window: most sequences handed to the engine at a time.
    """

    input: Path
    output: Path
    form: str = "jsonl"
    defaults: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0
    layout: Layout = field(default_factory=Layout)
    template_arguments: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    line_limit: int = LINE_LIMIT
    strict: bool = False
    ordered: bool = False
    window: int = 512

    @property
    def files(self) -> JobFiles:
        return JobFiles(self.output)


class Outcome(msgspec.Struct, kw_only=True):
    """What a plan said and what then came of it, over the session that ran it to its end.

    Attributes:
        rows: that were left to run when it was made.
        exact, planned, predicted: the plan's; prompt tokens and seconds.
        computed: prompt tokens that were computed, those computed again after a preemption among them.
        preemptions: how often a sequence had to give its pages back.
        seconds: from the first step to the last.
    """

    rows: int
    exact: bool
    planned: int
    predicted: float | None
    computed: int
    preemptions: int
    seconds: float


class Summary(msgspec.Struct, kw_only=True):
    """The books of a finished job, over all its sessions.

    Attributes:
        rows: good and bad ones; folded: rows answered by another row's computation.
        cut: rows with an answer that ended at max_tokens.
        prompt_tokens, answer_tokens: of all answers, folded ones included.
        cached_tokens: prompt tokens taken from the cache; computed_tokens: rows the engine computed for
            answers that were written.
        folded_tokens: prompt and answer tokens of folded rows.
        sessions: processes that worked on it.
        seconds: their time together, as far as it was recorded.
        outcome: of the last session's plan, if that session had rows to run.
    """

    rows: int = 0
    answered: int = 0
    failed: int = 0
    quarantined: int = 0
    folded: int = 0
    cut: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    folded_tokens: int = 0
    sessions: int = 0
    seconds: float = 0.0
    outcome: Outcome | None = None

    @property
    def exit_code(self) -> int:
        return SOME_FAILED if self.failed or self.quarantined else ANSWERED


class Planned(msgspec.Struct, kw_only=True):
    """What a plan says of the rows that are left to run.

    Attributes:
        policy: the reuse policy, as one would write it in a flag.
        shares: whether rows share K/V at all.
        exact: ``computed`` holds to the token unless somebody is preempted.
        rehearsed: where it is not exact, whether a dry run says so; otherwise it is what would be computed if
            the cache kept everything.
        rows, requests: rows that the engine answers; answers it makes for them.
        prompt_tokens: of all requests; computed: of these, those that sharing does not save.
        answer_tokens: expected; bounded: rows of which only a bound is known.
        nodes, levels: shared prefixes; how many lie within each other at most.
        windows: stretches of the job planned one after the other.
        seconds: predicted, None where nobody measured what steps cost here.
        peak_pages, preemptions: as predicted with it: most KV pages held at once, and sequences that will
            have to yield.
        pages, page_size: of the KV pool; in tokens a page.
    """

    policy: str = ""
    shares: bool = True
    exact: bool = False
    rehearsed: bool = False
    rows: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    computed: int = 0
    answer_tokens: int = 0
    bounded: int = 0
    nodes: int = 0
    levels: int = 0
    windows: int = 0
    seconds: float | None = None
    peak_pages: int | None = None
    preemptions: int | None = None
    pages: int = 0
    page_size: int = 0


class Status(msgspec.Struct):
    """Where a run stands; the same object is updated and shown again and again.

    ``rows`` are those to be answered and ``done`` those that have their line, over all sessions; ``failed``
    counts this session's.
    """

    rows: int = 0
    done: int = 0
    failed: int = 0


class Watcher(Protocol):
    """Somebody who looks at a job's progress. Every method returns quickly."""

    def preparing(self, done: int, size: int, rows: int, bad: int, tokens: int) -> None:
        """``done`` of ``size`` input bytes read; ``tokens`` of prompts so far."""

    def planning(self, done: int, rows: int) -> None:
        """``done`` of the ``rows`` to be planned are read."""

    def measuring(self, what: str, share: float) -> None:
        """What steps cost is being measured; ``share`` of the time for it is over."""

    def planned(self, plan: Planned) -> None:
        """What is about to run."""

    def begin(self, engine: Engine) -> None:
        """The first step comes next."""

    def running(self, status: Status, now: float) -> None: ...

    def say(self, text: str) -> None: ...


Stopping = Callable[[], bool]
"""Whether somebody asked the job to stop."""
