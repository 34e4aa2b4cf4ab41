"""The books of a finished job, read from its output."""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.jobs.job import Outcome, Summary
from shoal.jobs.results import ResultLine


class Books:
    """Adds up result lines. ``rows`` counts good and bad input rows, ``quarantined`` the bad ones."""

    def __init__(self, rows: int, quarantined: int) -> None:
        self._summary = Summary(rows=rows, quarantined=quarantined)

    def take(self, line: ResultLine, offset: int, size: int) -> None:
        summary = self._summary
        accounts = line.shoal
        summary.cached_tokens += accounts.cached_tokens
        summary.computed_tokens += accounts.computed_tokens
        if line.response is None:
            summary.failed += 1
            return
        summary.answered += 1
        body = line.response.body
        summary.prompt_tokens += body.usage.prompt_tokens
        summary.answer_tokens += body.usage.completion_tokens
        summary.cut += any(choice.finish_reason == "length" for choice in body.choices)
        if accounts.folded_into:
            summary.folded += 1
            summary.folded_tokens += body.usage.prompt_tokens + body.usage.completion_tokens

    def summary(self, events: list[dict[str, Any]]) -> Summary:
        """With the time of all sessions, as far as the journal recorded it, and what came of the last one's
        plan."""
        seconds = last = 0.0
        for event in events:
            if event["event"] == "session":
                self._summary.sessions += 1
                seconds, last = seconds + last, 0.0
            elif event["event"] == "progress":
                last = event["seconds"]
        self._summary.seconds = seconds + last
        self._summary.outcome = _outcome(events)
        return self._summary

    @staticmethod
    def plain(summary: Summary) -> dict[str, Any]:
        return msgspec.to_builtins(summary)

    @staticmethod
    def restore(values: dict[str, Any]) -> Summary:
        return msgspec.convert(values, Summary)


def _outcome(events: list[dict[str, Any]]) -> Outcome | None:
    plan: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    for event in events:
        if event["event"] == "session":
            plan = measured = None
        elif event["event"] == "plan":
            plan = event
        elif event["event"] == "progress":
            measured = event
    if plan is None or measured is None:
        return None
    return Outcome(
        rows=plan["rows"],
        exact=plan["exact"],
        planned=plan["computed"],
        predicted=plan["seconds"],
        computed=measured["prompt"],
        preemptions=measured["preemptions"],
        seconds=measured["running"],
    )
