"""What happened, in sentences."""

from __future__ import annotations

import math

from shoal.jobs.job import Summary
from shoal.jobs.report.data import Story
from shoal.jobs.report.scale import count, duration, percent, plural, short
from shoal.jobs.trace import SlowRow, Trace

FAR = 2.0
"""From so many times the median on a length explains a slow row."""
NOTABLE = 0.25
"""Share of what a row took beyond the average, from which on a part of its way is named."""
NOTABLE = 0.25
"""Share of what a row took beyond the average, from which on a part of its way is named."""


def headline(story: Story) -> str:
    """One line: what came out, and how long it took."""
    summary = story.summary
    took = f" in {duration(summary.seconds)}" if summary.seconds else ""
    if summary.rows == 0:
        return "The input held no rows"
    if summary.answered == 0:
        return f"None of {plural(summary.rows, 'row')} could be answered"
    if summary.answered < summary.rows:
        return f"{count(summary.answered)} of {plural(summary.rows, 'row')} answered{took}"
    return f"{plural(summary.rows, 'row')} answered{took}"


def sentences(story: Story) -> list[str]:
    """The story in short: speed, sharing, prediction, and what went wrong."""
    return [text for text in (_speed(story), _sharing(story), predicted(story), _trouble(story)) if text]


def _speed(story: Story) -> str:
    summary, seconds = story.summary, story.trace.seconds
    if not summary.computed_tokens or not seconds:
        return ""
    text = (
        f"The engine computed {count(summary.computed_tokens)} tokens in {duration(seconds)} of running, "
        f"{short(sum(story.trace.bins.prompt + story.trace.bins.generated) / seconds)} a second, "
        f"and gave {count(summary.answer_tokens)} tokens of answers."
    )
    if summary.sessions > 1:
        text += f" It took {summary.sessions} sessions; each went on where the one before had stopped."
    return text


def saved(summary: Summary) -> int:
    """Tokens that would have been computed if every row had been on its own."""
    return summary.cached_tokens + summary.folded_tokens


def times(summary: Summary) -> float:
    """How many times as many tokens that would have been."""
    return (summary.computed_tokens + saved(summary)) / max(1, summary.computed_tokens)


def _sharing(story: Story) -> str:
    summary = story.summary
    if not summary.answered:
        return ""
    if not saved(summary):
        return "No row shared a beginning with another, so nothing was saved."
    parts = []
    if summary.cached_tokens:
        share = summary.cached_tokens / max(1, summary.prompt_tokens)
        parts.append(
            f"{count(summary.cached_tokens)} prompt tokens ({percent(share)}) were not computed again"
        )
    if summary.folded:
        rows = plural(summary.folded, "row")
        parts.append(f"{rows} took the answer of an equal one ({count(summary.folded_tokens)} tokens)")
    text = "Sharing: " + ", and ".join(parts)
    return f"{text}. Each row on its own would have computed {times(summary):.1f} times as many tokens."


def predicted(story: Story) -> str:
    """The plan against what was measured, of the session that ended the job."""
    outcome = story.summary.outcome
    if outcome is None or not outcome.computed:
        return ""
    parts = []
    if outcome.predicted is not None and outcome.seconds:
        off = difference(outcome.predicted, outcome.seconds)
        took = f"it took {duration(outcome.seconds)} ({off})"
        parts.append(f"{duration(outcome.predicted)} of running, and {took}")
    if outcome.computed == outcome.planned:
        parts.append(f"{plural(outcome.planned, 'prompt token')} to compute, and that was exact")
    elif outcome.planned:
        were = f"{count(outcome.computed)} were ({difference(outcome.planned, outcome.computed)})"
        why = ", because rows that had to yield were computed again" if outcome.preemptions else ""
        parts.append(f"{count(outcome.planned)} prompt tokens to compute, and {were}{why}")
    rows = plural(outcome.rows, "row")
    plan = f"The last session's plan, over {rows}," if story.summary.sessions > 1 else "The plan"
    return f"{plan} said {'; '.join(parts)}." if parts else ""


def difference(said: float, measured: float) -> str:
    """How far the plan was off."""
    if said == measured:
        return "exactly"
    if not said or not measured:
        return "far off"
    off = measured / said - 1
    return f"{'+' if off > 0 else '−'}{percent(abs(off))}"


def _trouble(story: Story) -> str:
    summary, trace = story.summary, story.trace
    parts = []
    if summary.failed:
        parts.append(f"{plural(summary.failed, 'row')} failed")
    if summary.quarantined:
        parts.append(f"{plural(summary.quarantined, 'bad row')} were put aside")
    if summary.cut:
        parts.append(f"{plural(summary.cut, 'answer')} ended at max_tokens")
    preemptions = sum(trace.bins.preemptions)
    if preemptions:
        parts.append(f"memory ran full {often(preemptions)}, so that somebody had to yield")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def often(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{count(number)} times")


def why(row: SlowRow, trace: Trace) -> str:
    """Why a row was slower than an average one, most important first."""
    reasons = []
    if row.preemptions:
        again = f" and {plural(row.lost, 'token')} were computed again" if row.lost else ""
        reasons.append(f"had to yield {often(row.preemptions)} because memory was full{again}")
    rows = max(1, trace.latency.count)
    parts = [
        (row.decode, trace.decoded / rows, _decode),
        (row.prefill, trace.prefilled / rows, _prefill),
        (row.queue, trace.waited / rows, _queue),
    ]
    excess = [max(0.0, seconds - usual) for seconds, usual, _ in parts]
    order = sorted(range(len(parts)), key=lambda i: (excess[i], parts[i][0]), reverse=True)
    for place, i in enumerate(order):
        seconds, usual, say = parts[i]
        if place == 0 or excess[i] >= NOTABLE * sum(excess) > 0:
            reasons.append(say(row, trace, seconds, usual))
    return "; ".join(reasons)


def _queue(row: SlowRow, trace: Trace, seconds: float, usual: float) -> str:
    return f"waited {duration(seconds)} for a place among those running ({duration(usual)} on average)"


def _prefill(row: SlowRow, trace: Trace, seconds: float, usual: float) -> str:
    left, median = row.prompt - row.cached, trace.prompt.quantile(0.5)
    tokens = f"{count(left)} of its {count(row.prompt)} prompt tokens"
    text = f"spent {duration(seconds)} in steps that computed {tokens}"
    return text + (_than(row.prompt, median) if row.prompt >= FAR * median else "")


def _decode(row: SlowRow, trace: Trace, seconds: float, usual: float) -> str:
    text = f"took {duration(seconds)} to generate {plural(row.answer, 'token')}"
    if row.answers > 1:
        text += f" in {row.answers} answers"
    median = trace.answer.quantile(0.5)
    return text + (_than(row.answer, median) if row.answer >= FAR * median else "")


def _than(length: int, usual: float) -> str:
    return f" ({short(length / usual)} times the median)" if usual else ""


def quantiles(trace: Trace) -> str:
    """How long rows took."""
    found = trace.latency
    if found.count < 2:
        return ""
    half, ninety, most = (duration(found.quantile(q)) for q in (0.5, 0.9, 0.99))
    text = f"Half of the rows took at most {half}, 90% at most {ninety}, 99% at most {most}"
    return f"{text}; the slowest took {duration(found.high)}."


def memory(trace: Trace) -> str:
    """How full the pool was."""
    if not trace.sessions or not len(trace.bins):
        return ""
    last = trace.sessions[-1]
    fullest, seconds = max(trace.bins.fullest), trace.seconds
    tokens = last.pages * last.page_size
    held, cached = math.fsum(trace.bins.held) / seconds, math.fsum(trace.bins.cached) / seconds
    return (
        f"The pool holds {count(tokens)} tokens in {count(last.pages)} pages. Running rows held "
        f"{percent(held / last.pages)} of it on average and {percent(fullest / last.pages)} at most; "
        f"{percent(cached / last.pages)} lay in the cache, until somebody needed the room."
    )
