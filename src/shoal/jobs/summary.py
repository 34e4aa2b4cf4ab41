"""The books of a finished job, read from its output."""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.jobs.job import Summary
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
        """With the time of all sessions, as far as the journal recorded it."""
        seconds = last = 0.0
        for event in events:
            if event["event"] == "session":
                self._summary.sessions += 1
                seconds, last = seconds + last, 0.0
            elif event["event"] == "progress":
                last = event["seconds"]
        self._summary.seconds = seconds + last
        return self._summary

    @staticmethod
    def plain(summary: Summary) -> dict[str, Any]:
        return msgspec.to_builtins(summary)

    @staticmethod
    def restore(values: dict[str, Any]) -> Summary:
        return msgspec.convert(values, Summary)
