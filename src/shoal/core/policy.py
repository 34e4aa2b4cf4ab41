"""Policies answer, mechanisms act.

A policy is like an estimator: its constructor only stores named parameters, its ``repr`` recreates it,
and it never changes what it is shown. It is bound once (``bind``), told what happened (``observe``, the
only place where its own state changes), and asked through the one method of its seam:

    order      who is next?                                     a sort key per sequence
    admission  how many rows in this step, may this one enter?  integers, yes or no
    victim     memory is full: who yields?                      one of the candidates
    retention  which idle cached page goes first?               a sort key per page
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.core.events import Event

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed values of a parameter, for ``Annotated[int, Range(1, 4096, scale="log")]``."""

    low: float
    high: float
    scale: str = "linear"


class Sequence(NamedTuple):
    """One row of a ``SequenceView``, for policies written for one sequence."""

    handle: int
    arrived: float
    prompt: int
    known: int
    computed: int
    limit: int
    preemptions: int


@dataclass(frozen=True, slots=True)
class SequenceView:
    """Columns over m sequences, each of shape (m,), read-only.

    handle: int64, ascending in order of arrival. arrived: float64, seconds. prompt, known, computed,
    limit: int32, tokens (limit is the longest it may become). preemptions: int32.
    """

    now: float
    handle: I64
    arrived: F64
    prompt: I32
    known: I32
    computed: I32
    limit: I32
    preemptions: I32

    def __len__(self) -> int:
        return len(self.handle)

    def __getitem__(self, i: int) -> Sequence:
        return Sequence(
            int(self.handle[i]),
            float(self.arrived[i]),
            int(self.prompt[i]),
            int(self.known[i]),
            int(self.computed[i]),
            int(self.limit[i]),
            int(self.preemptions[i]),
        )


@dataclass(frozen=True, slots=True)
class PageView:
    """Columns over m cached pages that nobody holds any more, each of shape (m,), read-only.

    depth: int32, tokens from the start of the prompt to the page's end. last_used: float64, seconds.
    uses: int32, how often a sequence took the page from the cache.
    """

    now: float
    page: I32
    depth: I32
    last_used: F64
    uses: I32


@dataclass(frozen=True, slots=True)
class Load:
    """The state of the engine between two steps, in plain numbers."""

    now: float
    running: int
    waiting: int
    singles: int
    """Running sequences with exactly one row to compute."""
    backlog: int
    """Rows that the other running sequences still have to compute."""
    free_pages: int
    """Pages free or idle in the cache."""
    total_pages: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Most rows in this step; most rows of sequences with one row to do; most rows for any one sequence."""

    rows: int
    singles: int
    chunk: int


class Policy:
    """What every policy has beside the one answer of its seam."""

    seam: ClassVar[str] = ""
    dynamic: ClassVar[bool] = False
    """Whether answers change with time; static keys are asked once and kept."""

    def bind(self, rng: np.random.Generator) -> None:
        """Called once before the first question, with the engine's seeded generator."""

    def observe(self, event: Event) -> None:
        """Take note of what happened. The only place where a policy changes its own state."""

    @classmethod
    def parameters(cls) -> dict[str, inspect.Parameter]:
        """The constructor's named parameters; a class without a constructor has none."""
        if cls.__init__ is object.__init__:
            return {}
        found = inspect.signature(cls.__init__, eval_str=True).parameters
        return {name: value for name, value in found.items() if name != "self"}

    def __repr__(self) -> str:
        values = (f"{name}={getattr(self, name)!r}" for name in self.parameters())
        return f"{type(self).__name__}({', '.join(values)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class Order(Policy):
    """Who is next? Lower keys go first; ties go to who arrived first."""

    seam = "order"

    def key(self, sequence: Sequence) -> Any:
        raise NotImplementedError(f"{type(self).__name__} answers neither key nor keys")

    def keys(self, view: SequenceView) -> F64:
        """A key per sequence, shape (m,), float64. Override for whole columns at once."""
        return np.array([self.key(view[i]) for i in range(len(view))], dtype=np.float64)


class Admission(Policy):
    """How many rows, in what portions, and may this newcomer enter?"""

    seam = "admission"

    def budget(self, load: Load) -> Budget:
        raise NotImplementedError

    def enters(self, load: Load, newcomer: Sequence) -> bool:
        """Memory is the mechanism's business; this is about wanting to."""
        return True


class Victim(Policy):
    """Memory is full: who yields?"""

    seam = "victim"

    def choose(self, candidates: SequenceView) -> int:
        """An index into ``candidates``, which stand in running order (first is next)."""
        raise NotImplementedError


class Retention(Policy):
    """Which idle cached page goes first? Lower keys go first; a page never outlives its children."""

    seam = "retention"

    def keys(self, view: PageView) -> F64:
        """A key per page, shape (m,), float64, asked when pages become idle."""
        raise NotImplementedError


SEAMS: dict[str, type[Policy]] = {
    "order": Order,
    "admission": Admission,
    "victim": Victim,
    "retention": Retention,
}
