"""How the contest talks to whoever runs a job: one line of JSON in, one line of JSON out.

Standard library only: this runs in every peer's own environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Job:
    """Requests that arrive at once, as read from a job file.

    Attributes:
        prompts: token ids.
        outputs: tokens to produce, one number a request.
        common: so many ids at the beginning of a prompt are those of its whole group; 0 without groups.
    """

    name: str
    prompts: list[list[int]]
    outputs: list[int]
    common: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(prompt) + output for prompt, output in zip(self.prompts, self.outputs))

    def groups(self) -> list[list[int]]:
        """Indices of requests that begin with the same ``common`` ids, groups in order of their first."""
        found: dict[tuple[int, ...], list[int]] = {}
        for index, prompt in enumerate(self.prompts):
            found.setdefault(tuple(prompt[: self.common]) if self.common else (index,), []).append(index)
        return list(found.values())


@dataclass(frozen=True)
class Start:
    """What a contestant is started with.

    Attributes:
        model: folder or file, in the form that the contestant reads.
        threads: compute threads.
        kv_tokens: size of the KV pool in tokens, None where memory is not the point.
        longest: tokens of the longest sequence of any job.
        variant: settings in which contestants of one package differ.
    """

    model: str
    threads: int
    kv_tokens: int | None
    longest: int
    variant: dict[str, Any]


class Contestant(Protocol):
    """Whoever runs jobs. Made with the model loaded.

    Attributes:
        settings: what it was told, for people, one phrase each.
        cold_by: how its caches are made cold.
    """

    settings: list[str]
    cold_by: str

    def cold(self, job: Job) -> None:
        """Outside the clock: caches empty, and ready for this job."""
        ...

    def answer(self, job: Job) -> list[list[int]]:
        """Inside the clock: the ids produced for each request, in the order of the requests."""
        ...


def serve(make: Callable[[Start], Contestant]) -> None:
    """Load, say so, and run jobs until the input ends.

    What libraries print to standard output goes to standard error, so that replies stay alone.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(**content: Any) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    try:
        contestant = make(Start(**json.loads(sys.argv[1])))
    except Exception as error:
        reply(error=one_line(error))
        raise
    reply(settings=contestant.settings, cold_by=contestant.cold_by)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            reply(**_run(contestant, Job(**json.loads(Path(order["job"]).read_text())), Path(order["out"])))
        except Exception as error:
            reply(error=one_line(error))


def _run(contestant: Contestant, job: Job, out: Path) -> dict[str, Any]:
    contestant.cold(job)
    begin = time.perf_counter()
    answers = contestant.answer(job)
    seconds = time.perf_counter() - begin
    out.write_text(json.dumps([[int(token) for token in answer] for answer in answers]))
    return {"tokens": [len(answer) for answer in answers], "seconds": seconds}


def one_line(error: BaseException) -> str:
    """The error's kind and the first line that says something, for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO's texts begin with the places in its sources.
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or lines
    return f"{type(error).__name__}: {telling[0][:300]}" if telling else type(error).__name__
