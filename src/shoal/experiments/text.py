"""An outcome in words: the cells of its tables, and its one line of JSON."""

from __future__ import annotations

import math

import msgspec

from shoal.experiments.claims import QUICK_SECONDS, Claim, Outcome

COLUMNS = ("claim", "baseline", "value", "should be", "")


def number(value: object, unit: str = "") -> str:
    """A cell: whole numbers with thousands, others with four digits, texts as they are."""
    if value is None:
        return ""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return str(value)
    found = float(value)
    if not math.isfinite(found):
        text = str(found)
    elif found.is_integer() or abs(found) >= 1000:
        text = f"{found:,.0f}"
    else:
        text = f"{found:.4g}"
    return f"{text} {unit}".rstrip()


def verdict(claim: Claim) -> str:
    """pass, FAIL, not judged, or what it needs."""
    if claim.needs:
        return f"needs {claim.needs}"
    if claim.passed is None:
        return "not judged"
    return "pass" if claim.passed else "FAIL"


def cells(claim: Claim) -> tuple[str, str, str, str, str]:
    """One row under ``COLUMNS``."""
    should = "" if claim.op is None else f"{claim.op} {number(claim.threshold, claim.unit)}"
    return (
        claim.name,
        number(claim.baseline, claim.unit),
        number(claim.value, claim.unit),
        should,
        verdict(claim),
    )


def ending(outcome: Outcome) -> str:
    """How it went, in one line."""
    judged = [claim for claim in outcome.claims if claim.judged]
    held = sum(bool(claim.passed) for claim in judged)
    others = len(outcome.claims) - len(judged)
    rest = f", {others} not judged" if others else ""
    late = outcome.trial.quick and outcome.seconds > QUICK_SECONDS
    return (
        f"{outcome.name}: {held} of {len(judged)} claims hold{rest}; "
        f"seed {outcome.trial.seed}{', quick' if outcome.trial.quick else ''}, {outcome.seconds:.1f} s"
        f"{f', more than the {QUICK_SECONDS} s of a quick run' if late else ''}"
    )


def as_json(outcome: Outcome) -> str:
    """One line. What is no finite number is null; so is ``passed`` of a claim that is not judged."""
    claims = [
        {
            "name": claim.name,
            "value": claim.value,
            "op": claim.op,
            "threshold": claim.threshold,
            "unit": claim.unit,
            "passed": claim.passed,
            "kind": claim.kind,
            "judged": claim.judged,
            "baseline": claim.baseline,
            "needs": claim.needs or None,
        }
        for claim in outcome.claims
    ]
    whole = {
        "system": outcome.name,
        "claims": claims,
        "passed": outcome.passed,
        "seconds": round(outcome.seconds, 3),
        "seed": outcome.trial.seed,
        "quick": outcome.trial.quick,
    }
    return msgspec.json.encode(whole).decode()
