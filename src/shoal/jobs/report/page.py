"""The page: a story turned into HTML that needs nothing but itself."""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from shoal.jobs.report import charts, scale, words
from shoal.jobs.report.charts import Chart, Series, Tips
from shoal.jobs.report.data import Story
from shoal.jobs.trace import Bins, Trace

EXCERPT = 160
MOST_ERRORS = 20


def render(story: Story) -> str:
    """The whole page. Every text of the story is escaped by the template."""
    return _template().render(
        story=story,
        summary=story.summary,
        trace=story.trace,
        headline=words.headline(story),
        sentences=words.sentences(story),
        figures=figures(story),
        charts=_charts(story.trace),
        way=_way(story.trace),
        groups=_groups(story),
        slow=_slow(story.trace),
        comparison=comparison(story),
        rest_saved=_rest_saved(story),
        reasons=_reasons(story.trace),
        phases=phases(story),
        style=Markup(_text("page.css")),
        script=Markup(_text("page.js")),
    )


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "count": scale.count,
        "short": scale.short,
        "duration": scale.duration,
        "percent": scale.percent,
        "plain": plain,
        "tips": _tips,
    }
    environment.globals |= {"plural": scale.plural, "words": words}
    return environment.from_string(_text("page.html"))


def _text(name: str) -> str:
    return files("shoal.jobs.report").joinpath(name).read_text(encoding="utf-8")


def plain(text: str, most: int = EXCERPT) -> str:
    """A user's text on one line: breaks are shown, what steers a terminal or turns the direction of
    writing is left out, the rest is cut."""
    shown = "".join(
        "⏎" if letter == "\n" else letter if letter.isprintable() else " " if letter.isspace() else ""
        for letter in text[: 4 * most]
    )
    shown = " ".join(shown.replace("⏎", " ⏎ ").split())
    return shown if len(shown) <= most else shown[: most - 1].rstrip() + "…"


def _tips(tips: Tips) -> dict[str, Any]:
    return {"x": [round(edge, 5) for edge in tips.edges], "labels": tips.labels, "lines": tips.lines}


def figures(story: Story) -> list[tuple[str, str, str]]:
    """The tiles under the headline: (name, figure, remark)."""
    summary, trace = story.summary, story.trace
    found = []
    if summary.seconds and summary.answered:
        rate = f"{scale.short(summary.answered / summary.seconds)} a second"
        found.append(("rows answered", scale.count(summary.answered), rate))
    computed = _computed(trace)
    if computed:
        found.append(("computed", f"{scale.short(computed / trace.seconds)}", "tokens a second"))
        found.append(
            ("answers", f"{scale.short(sum(trace.bins.emitted) / trace.seconds)}", "tokens a second")
        )
    if summary.answered and words.saved(summary):
        whole = summary.computed_tokens + words.saved(summary)
        found.append(("saved by sharing", scale.percent(words.saved(summary) / whole), "of all tokens"))
    outcome = summary.outcome
    if outcome and outcome.predicted is not None and outcome.seconds:
        off = words.difference(outcome.predicted, outcome.seconds)
        found.append(("time against plan", off, f"planned {scale.duration(outcome.predicted)}"))
    if trace.latency.count > 1:
        found.append(("a row, median", scale.duration(trace.latency.quantile(0.5)), "from start to end"))
    preempted = sum(trace.bins.preemptions)
    if preempted:
        lost = scale.short(max(0, sum(trace.bins.lost)))
        found.append(("preemptions", scale.short(preempted), f"{lost} tokens lost"))
    return found


def _computed(trace: Trace) -> int:
    return sum(trace.bins.prompt) + sum(trace.bins.generated)


def comparison(story: Story) -> list[tuple[str, str, str, str]]:
    """Planned against measured: (what, planned, measured, difference)."""
    plan, outcome, trace = story.planned, story.summary.outcome, story.trace
    if outcome is None or not outcome.computed:
        return []
    found = []
    if outcome.predicted is not None:
        off = words.difference(outcome.predicted, outcome.seconds)
        said, measured = scale.duration(outcome.predicted), scale.duration(outcome.seconds)
        found.append(("time of running", said, measured, off))
    counted = [("prompt tokens computed", outcome.planned, outcome.computed)]
    if plan is not None and trace.sessions:
        most = "answer tokens, at most" if plan.bounded else "answer tokens"
        counted.append((most, plan.answer_tokens, trace.sessions[-1].emitted))
    for name, planned, came in counted:
        if planned:
            found.append((name, scale.count(planned), scale.count(came), words.difference(planned, came)))
    return found


def phases(story: Story) -> list[tuple[str, str]]:
    """Where the time of all sessions went."""
    trace, whole = story.trace, story.summary.seconds
    found = [(name, scale.duration(took)) for name, took in trace.phases.items() if took > 0.002 * whole]
    if trace.seconds:
        found.append(("running", scale.duration(trace.seconds)))
    rest = whole - trace.seconds - math.fsum(trace.phases.values())
    if found and rest > 0.01 * whole:
        found.append(("all else", scale.duration(rest)))
    return found


# Charts


def _charts(trace: Trace) -> dict[str, Chart]:
    """Those for which there is anything to show, by name."""
    found = {}
    if _computed(trace):
        found = _over_time(trace)
    lengths = {
        "latency": (trace.latency, "queue", True, "rows"),
        "first_token": (trace.first_token, "prompt", True, "rows"),
        "prompt": (trace.prompt, "prompt", False, "rows"),
        "answer": (trace.answer, "generated", False, "rows"),
    }
    for name, (values, colour, time, thing) in lengths.items():
        if values.count > 1:
            unit = "" if time else "tokens"
            found[name] = charts.histogram(values, unit, colour, time=time, thing=thing, title=TITLES[name])
    return found


TITLES = {
    "latency": "Distribution of the time a row took",
    "first_token": "Distribution of the time to a row's first token",
    "prompt": "Distribution of prompt lengths",
    "answer": "Distribution of answer lengths",
}


def _over_time(trace: Trace) -> dict[str, Chart]:
    bins = charts.by_time(trace.bins)
    edges, marks = bins.starts(), _stops(trace)
    tokens = {"prompt": bins.prompt, "generated": bins.generated}
    names = {"prompt": "prompt tokens", "generated": "generated tokens"}

    def rows(per: list[float], unit: str) -> list[Series]:
        return [
            Series(names[name], name, [n / max(p, 1e-9) for n, p in zip(values, per)], unit)
            for name, values in tokens.items()
        ]

    steps = [float(number) for number in bins.steps]
    found = {
        "rate": charts.timeline(
            edges, rows(bins.seconds, "/s"), stacked=True, title="Tokens computed a second", marks=marks
        ),
        "size": charts.timeline(
            edges, rows(steps, "a step"), stacked=True, title="Tokens computed a step", marks=marks
        ),
        "sequences": _sequences(bins, edges, marks),
        "memory": _memory(bins, edges, trace, marks),
    }
    if any(bins.preemptions):
        values = [float(number) for number in bins.preemptions]
        series = [Series("preemptions", "alarm", values)]
        found["preemptions"] = charts.timeline(
            edges, series, stacked=True, whole=True, title="Preemptions over time", marks=marks
        )
    return found


def _sequences(bins: Bins, edges: list[float], marks: list[tuple[float, str]]) -> Chart:
    series = [
        Series(name, name, [number / max(seconds, 1e-9) for number, seconds in zip(values, bins.seconds)])
        for name, values in (("running", bins.running), ("waiting", bins.waiting))
    ]
    return charts.timeline(
        edges, series, stacked=False, whole=True, title="Sequences running and waiting", marks=marks
    )


FULL = 0.25
"""A pool used less than this is drawn on the scale of what was used."""


def _memory(bins: Bins, edges: list[float], trace: Trace, marks: list[tuple[float, str]]) -> Chart:
    size = trace.sessions[-1].page_size
    series = [
        Series(
            name,
            colour,
            [size * pages / max(seconds, 1e-9) for pages, seconds in zip(values, bins.seconds)],
            "tokens",
        )
        for name, colour, values in (
            ("held by running rows", "held", bins.held),
            ("kept in the cache", "cached", bins.cached),
        )
    ]
    pool = size * max(session.pages for session in trace.sessions)
    peak = max(a + b for a, b in zip(series[0].values, series[1].values))
    top = float(pool) if peak > FULL * pool else 0.0
    return charts.timeline(edges, series, stacked=True, top=top, title="KV memory in use", marks=marks)


def _stops(trace: Trace) -> list[tuple[float, str]]:
    """Where one session ended and the next began."""
    found = []
    for before, after in zip(trace.sessions, trace.sessions[1:]):
        idle = after.began - before.began - before.seconds
        text = f"stopped for {scale.duration(idle)}" if idle >= 1 else "stopped"
        found.append((after.start, text))
    return found


# Lists


def _way(trace: Trace) -> list[tuple[str, str, float, str]]:
    """An average row's time: (name, colour, share, seconds)."""
    parts = (
        ("waiting for a place", "waiting", trace.waited),
        ("until its first token", "prompt", trace.prefilled),
        ("generating", "generated", trace.decoded),
    )
    whole = math.fsum(seconds for _, _, seconds in parts)
    if not whole or not trace.latency.count:
        return []
    mean = trace.latency.count
    return [(name, colour, part / whole, scale.duration(part / mean)) for name, colour, part in parts]


def _groups(story: Story) -> list[dict[str, Any]]:
    """The prefixes that saved most, as bars relative to the first."""
    most = max((prefix.group.saved for prefix in story.prefixes), default=0)
    return [
        {
            "text": plain(prefix.text).rstrip("… "),
            "end": prefix.group.tokens,
            "start": prefix.group.start,
            "requests": prefix.group.requests,
            "saved": prefix.group.saved,
            "share": prefix.group.saved / max(1, most),
        }
        for prefix in story.prefixes
    ]


def _rest_saved(story: Story) -> int:
    """What the prefixes that are not shown saved."""
    savings = story.trace.savings
    whole = savings.others_saved + sum(group.saved for group in savings.groups.values())
    return whole - sum(prefix.group.saved for prefix in story.prefixes)


def _reasons(trace: Trace) -> list[tuple[str, str]]:
    """Why rows failed, most frequent first: (rows, reason)."""
    ranked = sorted(trace.reasons.items(), key=lambda entry: -entry[1])
    return [(scale.count(rows), what) for what, rows in ranked]


def _slow(trace: Trace) -> list[dict[str, Any]]:
    most = max((row.latency for row in trace.slowest), default=0.0) or 1.0
    return [
        {
            "row": row,
            "parts": [
                ("waiting", max(0.0, row.queue) / most),
                ("prompt", max(0.0, row.prefill) / most),
                ("generated", max(0.0, row.decode) / most),
            ],
            "why": words.why(row, trace),
        }
        for row in trace.slowest
    ]
