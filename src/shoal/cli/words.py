"""What a plan says, in words."""

from __future__ import annotations

from shoal.jobs.job import Outcome, Planned


def duration(seconds: float) -> str:
    """``3.2 s``, ``4:05`` or ``2:03:04``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def plural(count: int, one: str) -> str:
    """``1 row`` or ``1,200 rows``."""
    return f"{count:,} {one}{'' if count == 1 else 's' if one[-2:] not in ('ix', 'ss') else 'es'}"


def computed(plan: Planned) -> str:
    """The prompt tokens to compute, with how sure that is."""
    return ("" if plan.exact else "about " if plan.rehearsed else "at least ") + f"{plan.computed:,}"


def prompts(plan: Planned) -> str:
    """How many prompt tokens there are, and how many of them are computed."""
    if plan.computed == plan.prompt_tokens:
        return f"{plan.prompt_tokens:,} tokens, all of them to compute"
    return f"{plan.prompt_tokens:,} tokens, {computed(plan)} of them to compute"


def answers(plan: Planned) -> str:
    """How many tokens the answers will have."""
    how = "about"
    if plan.bounded == plan.rows:
        how = "at most"
    elif plan.bounded:
        how = f"at most, as {plural(plan.bounded, 'row')} may run to max_tokens,"
    return f"{how} {plan.answer_tokens:,} tokens"


def reason(plan: Planned) -> str:
    """Why the rows run as they do."""
    saved = plan.prompt_tokens - plan.computed
    if not plan.rows:
        return "nothing is left to run"
    if not plan.shares:
        return "rows share nothing, as prefix reuse is off or the layout is slots, so they run as they come"
    if not plan.nodes:
        return f"no two prompts begin alike for a page of {plan.page_size} tokens, so none saves another any"
    if not saved:
        return "its prefixes are too short to save anything"
    return (
        f"sharing saves {saved / plan.prompt_tokens:.1%} of the prompt tokens: "
        f"{computed(plan)} instead of {plan.prompt_tokens:,}"
    )


def memory(plan: Planned, token_bytes: int = 0) -> str:
    """How full the KV pool becomes."""
    if plan.peak_pages is None:
        return f"{plan.pages:,} KV pages of {plan.page_size} tokens"
    used = plan.peak_pages / max(1, plan.pages)
    text = f"{plan.peak_pages:,} of {plan.pages:,} KV pages at most ({used:.0%})"
    if token_bytes:
        size, whole = (
            count * plan.page_size * token_bytes / 2**30 for count in (plan.peak_pages, plan.pages)
        )
        text += f", {size:.2f} of {whole:.2f} GiB"
    if plan.preemptions:
        text += f"; {plural(plan.preemptions, 'sequence')} will have to yield"
    return text


def short(plan: Planned) -> list[str]:
    """A plan in two or three lines, before a run."""
    kinds = (
        f"{plural(plan.nodes, 'shared prefix')} in up to {plural(plan.levels, 'level')}, "
        if plan.nodes
        else ""
    )
    lines = [
        f"plan: {plural(plan.rows, 'row')}; {reason(plan)}",
        f"      answers {answers(plan)}; {kinds}{memory(plan)}",
    ]
    if plan.seconds is not None:
        lines.append(f"      predicted {duration(plan.seconds)}")
    return lines


def difference(predicted: float, measured: float) -> str:
    """``+3%``, of the prediction."""
    return f"{(measured - predicted) / predicted:+.0%}" if predicted else "-"


def outcome_rows(outcome: Outcome, sessions: int) -> list[tuple[str, str]]:
    """Predicted against measured, for the summary of a run: of what its last session found left to do."""
    least = "" if outcome.exact else "about "
    text = f"planned {least}{outcome.planned:,} prompt tokens, computed {outcome.computed:,}"
    if outcome.preemptions:
        text += f", as {plural(outcome.preemptions, 'sequence')} had to yield"
    if sessions > 1:
        text += f", for the {plural(outcome.rows, 'row')} that the last session had left"
    found = [("plan", text)]
    if outcome.predicted is not None:
        foretold, took = duration(outcome.predicted), duration(outcome.seconds)
        off = difference(outcome.predicted, outcome.seconds)
        found.append(("", f"predicted {foretold}, measured {took} ({off})"))
    return found
