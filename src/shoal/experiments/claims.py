"""What an experiment claims: numbers beside thresholds, each counted or read off a clock.

An experiment is a module with a docstring and ``run(trial, findings)``. It runs workload, baselines and
policy in one process, for any seed, and states what it found. It judges nothing itself, and a threshold
stands where the claim is made.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat

from shoal.core.errors import InternalError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], None]
Op = Literal[">=", "<=", "==", ">", "<"]
HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
QUICK_SECONDS = 10
"""A quick trial takes at most so long in all."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How an experiment is to run.

    Attributes:
        seed: of every random choice in the workload; any whole number must do.
        quick: small sizes, at most ``QUICK_SECONDS`` in all; clocked claims are stated but not judged.
    """

    seed: int = 0
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that should hold: ``value op threshold``.

    Attributes:
        name: what is claimed, in words.
        kind: counted (tokens, steps, bytes, equality, simulated time) or clocked (wall time here).
        value: what the policy reached; None where it could not be found yet.
        unit: of value, threshold and baseline.
        baseline: what the policy is compared with, where that is a number.
        judged: whether it counts for success.
        needs: the room that has to stand before it can be found, empty if none.
    """

    name: str
    kind: Literal["counted", "clocked"]
    value: float | None
    op: Op | None
    threshold: float | None
    unit: str = ""
    baseline: float | None = None
    judged: bool = True
    needs: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether it holds; None where that is not judged. What is no finite number holds never."""
        if not self.judged or self.op is None:
            return None
        return (
            self.value is not None
            and math.isfinite(self.value)
            and HOLDS[self.op](self.value, self.threshold)
        )


@dataclass(frozen=True, slots=True)
class Table:
    """A further table: column titles, and rows of texts or numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(slots=True)
class Findings:
    """What an experiment states while it runs.

    Attributes:
        trial: how it runs.
        watch: told in a few words what is going on, for a line of progress.
    """

    trial: Trial
    watch: Callable[[str], None] = lambda text: None
    claims: list[Claim] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    draw: Draw | None = None

    def counted(
        self,
        name: str,
        value: SupportsFloat,
        op: Op,
        threshold: SupportsFloat,
        *,
        unit: str = "",
        baseline: SupportsFloat | None = None,
    ) -> None:
        """State a claim on tokens, steps, bytes, equality or simulated time."""
        self._state(name, "counted", value, op, threshold, unit, baseline, judged=True)

    def clocked(
        self,
        name: str,
        value: SupportsFloat,
        op: Op,
        threshold: SupportsFloat,
        *,
        unit: str = "",
        baseline: SupportsFloat | None = None,
    ) -> None:
        """State a claim on wall time of this machine; a quick trial does not judge it. Use alternating
        pairs and medians."""
        self._state(name, "clocked", value, op, threshold, unit, baseline, judged=not self.trial.quick)

    def needs(self, name: str, room: str) -> None:
        """Name a claim that can only be found once ``room`` stands; shown, never judged."""
        self._add(Claim(name, "counted", None, None, None, judged=False, needs=room))

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A further table for the terminal and the docs page; every row has one cell a column.

        Raises:
            InternalError: a row has another number of cells.
        """
        found = tuple(tuple(row) for row in rows)
        if any(len(row) != len(columns) for row in found):
            raise InternalError(f"table {title!r} has rows that do not fit its {len(columns)} columns")
        self.tables.append(Table(title, tuple(columns), found))

    def picture(self, draw: Draw) -> None:
        """Keep ``draw``, called later with an empty matplotlib figure if matplotlib is installed."""
        self.draw = draw

    def progress(self, text: str) -> None:
        """Say in a few words what is going on."""
        self.watch(text)

    def _state(
        self,
        name: str,
        kind: Literal["counted", "clocked"],
        value: SupportsFloat,
        op: Op,
        threshold: SupportsFloat,
        unit: str,
        baseline: SupportsFloat | None,
        *,
        judged: bool,
    ) -> None:
        if op not in HOLDS:
            raise InternalError(f"claim {name!r} compares by {op!r}", remedy=f"valid: {' '.join(HOLDS)}")
        compared = None if baseline is None else _number(baseline)
        self._add(Claim(name, kind, _number(value), op, _number(threshold), unit, compared, judged))

    def _add(self, claim: Claim) -> None:
        if any(known.name == claim.name for known in self.claims):
            raise InternalError(f"claim {claim.name!r} is stated twice")
        self.claims.append(claim)
        self.watch(claim.name)


def _number(value: SupportsFloat) -> float:
    """A plain number: whole ones, numpy's too, stay whole."""
    number = float(value)
    return int(value) if number.is_integer() else number  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run of an experiment."""

    name: str
    trial: Trial
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...]
    draw: Draw | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether something was judged and all of it holds."""
        judged = [claim for claim in self.claims if claim.judged]
        return bool(judged) and all(claim.passed for claim in judged)
