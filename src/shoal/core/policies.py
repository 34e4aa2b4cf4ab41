"""Every policy by name, one line each. Others add theirs by an entry point in ``shoal.policies``.

A policy is chosen by a specification ``name`` or ``name:parameter=value,parameter=value``.
"""

from __future__ import annotations

import inspect
import typing
from functools import cache
from importlib.metadata import entry_points

from shoal.core.errors import OperatorError
from shoal.core.policy import SEAMS, Policy, Range
from shoal.core.registry import Registry

POLICIES: dict[str, dict[str, str]] = {
    "order": {
        "fcfs": "shoal.schedule.order.fcfs:FCFS",
        "shortest": "shoal.schedule.order.shortest:Shortest",
    },
    "admission": {
        "chunked": "shoal.schedule.admission.chunked:Chunked",
    },
    "victim": {
        "last": "shoal.schedule.victim.last:Last",
    },
    "retention": {
        "lru": "shoal.memory.retention.lru:LRU",
    },
}

ENTRY_POINTS = "shoal.policies"


@cache
def registry(seam: str) -> Registry:
    """The policies of one seam, those of installed packages included.

    Raises:
        OperatorError: no such seam, or two packages claim one name.
    """
    if seam not in SEAMS:
        raise OperatorError(f"unknown seam {seam!r}", remedy=f"valid: {', '.join(SEAMS)}")
    found = Registry(f"{seam} policy", POLICIES[seam])
    for point in entry_points(group=ENTRY_POINTS):
        if _seam_of(point) == seam:
            found.add(point.name, point.value)
    return found


@cache
def _seam_of(point: object) -> str:
    try:
        part = point.load()  # type: ignore[attr-defined]
    except Exception as error:
        raise OperatorError(
            f"policy entry point {point} cannot be loaded: {error}", remedy="repair or uninstall that package"
        ) from error
    return str(getattr(part, "seam", ""))


def make(seam: str, specification: str | Policy) -> Policy:
    """The policy that ``specification`` names, constructed and not yet bound.

    Raises:
        OperatorError: unknown seam, name or parameter, or a value outside its range.
    """
    if isinstance(specification, Policy):
        if specification.seam != seam:
            raise OperatorError(f"{specification!r} answers {specification.seam!r}, not {seam!r}")
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
                f"{seam} policy {name!r} has no parameter {key!r}" if equals else f"cannot read {part!r}",
                remedy=f"valid: {', '.join(known) or 'none'}; write {name}:parameter=value",
            )
        values[key] = _value(f"{seam} {name}: {key}", known[key], text)
    return kind(**values)


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
