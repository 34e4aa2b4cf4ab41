"""Every policy by name, one line each. Others add theirs by an entry point in ``shoal.policies``.

A policy is chosen by a specification ``name`` or ``name:parameter=value,parameter=value``.
"""

from __future__ import annotations

import inspect
import typing
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from shoal.core.errors import OperatorError
from shoal.core.policy import SEAMS, Policy, Range, seams_of
from shoal.core.registry import Registry

POLICIES: dict[str, dict[str, str]] = {
    "order": {
        "fcfs": "shoal.schedule.order.fcfs:FCFS",
        "shortest": "shoal.schedule.order.shortest:Shortest",
    },
    "admission": {
        "alternating": "shoal.schedule.admission.alternating:Alternating",
        "prefill-first": "shoal.schedule.admission.prefill_first:PrefillFirst",
        "sarathi-serve": "shoal.schedule.admission.sarathi_serve:SarathiServe",
        "static": "shoal.schedule.admission.static:Static",
        "whole-prompt": "shoal.schedule.admission.whole_prompt:WholePrompt",
    },
    "victim": {
        "last": "shoal.schedule.victim.last:Last",
    },
    "retention": {
        "lru": "shoal.memory.retention.lru:LRU",
        "planned": "shoal.memory.retention.planned:Planned",
    },
    "reuse": {
        "arrival": "shoal.reuse.arrival:Arrival",
        "forest": "shoal.reuse.forest_order:ForestOrder",
        "sorted": "shoal.reuse.sorted_prompts:SortedPrompts",
    },
    "policy": {
        "batchllm": "shoal.reuse.batchllm:BatchLLM",
        "flover": "shoal.memory.flover:Flover",
        "sarathi-serve": "shoal.schedule.admission.sarathi_serve:SarathiServe",
    },
}
"""By seam, and the published systems under ``policy``: each takes every seam that it answers."""

DEFAULTS = {
    "order": "fcfs",
    "admission": "sarathi-serve",
    "victim": "last",
    "retention": "planned",
    "reuse": "forest",
}

ENTRY_POINTS = "shoal.policies"


@cache
def registry(seam: str) -> Registry:
    """The policies of one seam, those of installed packages included.

    Raises:
        OperatorError: no such seam, or two packages claim one name.
    """
    if seam not in POLICIES:
        raise OperatorError(f"unknown seam {seam!r}", remedy=f"valid: {', '.join(SEAMS)}")
    found = Registry("policy" if seam == "policy" else f"{seam} policy", POLICIES[seam])
    for point in _installed():
        if seam in _homes(point):
            found.add(point.name, point.value)
    return found


@cache
def _installed() -> tuple[EntryPoint, ...]:
    """Entry points of all packages here: every package's own file is read for them."""
    return tuple(entry_points(group=ENTRY_POINTS))


@cache
def _homes(point: EntryPoint) -> tuple[str, ...]:
    """Under which seams an installed policy is listed: its own, or ``policy`` for one with several."""
    try:
        part = point.load()
    except Exception as error:
        raise OperatorError(
            f"policy entry point {point} cannot be loaded: {error}", remedy="repair or uninstall that package"
        ) from error
    seams = seams_of(part) if isinstance(part, type) else []
    return tuple(seams) if len(seams) == 1 else ("policy",)


def resolve(
    system: str | Policy | None, chosen: dict[str, str | Policy | None], defaults: dict[str, str]
) -> dict[str, Policy]:
    """The policy of every seam: the one chosen for it, else the system's, else the default.

    Raises:
        OperatorError: as ``make``.
    """
    whole = None if system is None else make("policy", system)
    found: dict[str, Policy] = {}
    for seam, base in SEAMS.items():
        named = chosen.get(seam)
        if named is not None:
            found[seam] = make(seam, named)
        elif whole is not None and isinstance(whole, base):
            found[seam] = whole
        else:
            found[seam] = make(seam, defaults[seam])
    return found


def make(seam: str, specification: str | Policy) -> Policy:
    """The policy that ``specification`` names, constructed and not yet bound.

    Raises:
        OperatorError: unknown seam, name or parameter, or a value outside its range.
    """
    if isinstance(specification, Policy):
        if seam != "policy" and not isinstance(specification, SEAMS[seam]):
            raise OperatorError(
                f"{specification!r} answers {', '.join(seams_of(type(specification)))}, not {seam}"
            )
        return specification
    if not isinstance(specification, str):
        raise OperatorError(f"{seam} is {specification!r}", remedy="give a policy, or its name")
    name, _, rest = specification.partition(":")
    kind: type[Policy] = registry(seam).get(name)
    known = kind.parameters()
    values: dict[str, object] = {}
    for part in filter(None, rest.split(",")):
        key, equals, text = part.partition("=")
        if key not in known or not equals:
            raise OperatorError(
                f"{registry(seam).what} {name!r} has no parameter {key!r}"
                if equals
                else f"cannot read {part!r}",
                remedy=f"valid: {', '.join(known) or 'none'}; write {name}:parameter=value",
            )
        values[key] = _value(f"{seam} {name}: {key}", known[key], text)
    return kind(**values)


def specification(policy: Policy) -> str:
    """What one writes to get this policy: its name and the parameters that are not at their default. Where no
    registry lists its class, the class stands for the name."""
    kind, known = type(policy), policy.parameters()
    home = f"{kind.__module__}:{kind.__qualname__}"
    listed = (registry(seam).name_of(home) for seam in (*SEAMS, "policy"))
    name = next(filter(None, listed), kind.__qualname__)
    values = {key: getattr(policy, key) for key in known}
    written = [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in values.items()
        if value != known[key].default
    ]
    return f"{name}:{','.join(written)}" if written else name


def _value(where: str, parameter: inspect.Parameter, text: str) -> object:
    kind, limits = parameter.annotation, None
    if typing.get_origin(kind) is typing.Annotated:
        kind, *extra = typing.get_args(kind)
        limits = next((item for item in extra if isinstance(item, Range)), None)
    try:
        value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError, TypeError):
        raise OperatorError(f"{text!r} is not {kind.__name__}", where=where) from None
    if limits is not None and not limits.low <= value <= limits.high:
        raise OperatorError(f"{value} is outside {limits.low}..{limits.high}", where=where)
    return typing.cast(object, value)
