"""Policies answer, mechanisms act.

A policy is like an estimator: its constructor only stores named parameters, its ``repr`` recreates it,
and it never changes what it is shown. It is bound once (``bind``), told what happened (``observe``, the
only place where its own state changes), and asked through the one method of its seam:

    order      who is next?                                     a sort key per sequence
    admission  how many rows in this step, may this one enter?  integers, yes or no
    victim     memory is full: who yields?                      one of the candidates
    retention  which idle cached page goes first?               a worth per page
    reuse      what of a whole job is computed once, and when?  an order of its rows, prefixes to share

A system that answers several seams is one class with several of these bases.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.core.cost import Cost
from shoal.core.events import Event

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


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
    uses: int32, how often a sequence took the page from the cache. wanted: int32, requests still to come
    that begin with the page by a job's plan.
    """

    now: float
    page: I32
    depth: I32
    last_used: F64
    uses: I32
    wanted: I32


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
    """Pages free, or idle in the cache and not pinned."""
    total_pages: int
    entered: int = 0
    """Of the running ones, how many entered in this very step."""
    growth: int = 0
    """Pages that the running ones may still come to need. Known where ``enters`` is asked."""
    granted: int = 0
    """Rows given away in this step so far. Known where ``enters`` is asked."""


class Newcomer(NamedTuple):
    """A waiting sequence that may enter. ``pages``: what its known tokens need beside what the cache holds;
    ``growth``: what the tokens it may still produce need beyond that."""

    handle: int
    prompt: int
    known: int
    limit: int
    pages: int
    growth: int


@dataclass(frozen=True, slots=True)
class ForestView:
    """The prefixes that m rows of a job have in common: k nodes, each a stretch of whole pages after its
    parent, read or written by at least two requests. Read-only.

    Columns of rows, in the order of the job: length: int32, prompt tokens. answer: int32, tokens expected in
    the answer. copies: int32, requests that the row makes (``n``). readable: int32, tokens that it can take
    from a cache at most (whole pages; its last token is always computed). node: int32, the deepest node that
    it begins with, -1 for none.

    Columns of nodes, parents before children: parent: int32, -1 for none. depth: int32, tokens from the
    start of the prompt to the node's end.
    """

    page_size: int
    length: I32
    answer: I32
    copies: I32
    readable: I32
    node: I32
    parent: I32
    depth: I32


@dataclass(frozen=True, slots=True)
class Grouping:
    """What of a job is shared, and when its rows run.

    order: (m,), int64, row numbers, first to run first. opened: (k,), bool, nodes whose K/V rows share.
    nested: rows share all opened nodes that they begin with; otherwise the deepest one alone, and nothing
    between two groups.
    """

    order: I64
    opened: Bools
    nested: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """Most rows in this step; most rows of sequences with one row to do; most rows for any one sequence.

    A step is never empty: where nobody else can run, those held back by ``singles`` do.
    """

    rows: int
    singles: int
    chunk: int


class Policy:
    """What every policy has beside the answers of its seams."""

    dynamic: ClassVar[bool] = False
    """Whether answers change with time; static keys are asked once and kept."""

    def bind(self, cost: Cost | None, rng: np.random.Generator) -> None:
        """Called once before the first question, with what steps cost here (None where that was not
        measured) and the engine's seeded generator."""

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

    def key(self, sequence: Sequence) -> Any:
        raise NotImplementedError(f"{type(self).__name__} answers neither key nor keys")

    def keys(self, view: SequenceView) -> F64:
        """A key per sequence, shape (m,), float64. Override for whole columns at once."""
        return np.array([self.key(view[i]) for i in range(len(view))], dtype=np.float64)


class Admission(Policy):
    """How many rows, in what portions, and may this newcomer enter?"""

    def budget(self, load: Load) -> Budget:
        raise NotImplementedError

    def enters(self, load: Load, newcomer: Newcomer) -> bool:
        """That the newcomer's known tokens fit is the mechanism's business; this is about wanting to. After
        a no nobody else enters in this step. Not asked when nobody runs."""
        return True


class Victim(Policy):
    """Memory is full: who yields?"""

    def choose(self, candidates: SequenceView) -> int:
        """An index into ``candidates``, which stand in running order (first is next)."""
        raise NotImplementedError


class Retention(Policy):
    """Which idle cached page goes first? A page never outlives its children."""

    def worth(self, view: PageView) -> F64:
        """A number per page, shape (m,), float64, asked when pages become idle: lower ones go first. Minus
        infinity is let go at once; infinity pins the page until nothing else could run."""
        raise NotImplementedError


class Reuse(Policy):
    """What of a whole job is computed once for all, and in which order do its rows run?"""

    def plan(self, forest: ForestView) -> Grouping:
        raise NotImplementedError


SEAMS: dict[str, type[Policy]] = {
    "order": Order,
    "admission": Admission,
    "victim": Victim,
    "retention": Retention,
    "reuse": Reuse,
}


def seams_of(kind: type[Policy]) -> list[str]:
    """The seams that a class of policies answers."""
    return [seam for seam, base in SEAMS.items() if issubclass(kind, base)]
