"""What a layout of KV memory offers: how the scheduler and the plan see pages, whatever lies behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from shoal.core.plan import I32, I64, NO_MOVES, NO_PLACES
from shoal.core.policy import Policy
from shoal.memory.ledger import Ledger


class Mapping(NamedTuple):
    """Columns ``place``, ``maps`` and ``ahead`` of a ``StepPlan``."""

    place: I32 = NO_PLACES
    maps: I32 = NO_MOVES
    ahead: I32 = NO_MOVES


NO_MAPPING = Mapping()


class Layout(Protocol):
    """Pages for sequences, each named by its slot of the sequence table.

    Attributes:
        page_size: token positions a page.
        ledger: the books of the pool.
        policies: those that it asks.
    """

    page_size: int
    ledger: Ledger

    @property
    def policies(self) -> Sequence[Policy]: ...

    @property
    def available(self) -> int:
        """Pages that can be had without breaking a pin."""

    # A sequence's way: it comes, is let in or not, gives way, leaves.

    def open(self, slot: int) -> None:
        """A new sequence, which holds nothing yet."""

    def came(self, slot: int, now: float) -> None:
        """A waiting sequence is let in and has taken what it can, or will never be let in."""

    def give_way(self, slot: int, now: float) -> None:
        """A running sequence gives everything back and will come again."""

    def forget(self, nodes: range, now: float) -> None:
        """Nobody else will come for these prefixes of a plan; its other requests have all come, or never
        will."""

    def release(self, slot: int, now: float) -> None:
        """Give back everything that ``slot`` holds."""

    # Room

    def pages_for(self, tokens: int) -> int:
        """Pages that ``tokens`` positions take."""

    def soon(self, running: int) -> int:
        """Pages to leave for ``running`` sequences when somebody enters."""

    def missing(self, slots: I32, tokens: I32) -> tuple[I64, I32]:
        """Which of ``slots`` lack pages to hold ``tokens`` positions (indices, ascending), and how many."""

    def grow(self, slots: I32, missing: I32) -> None:
        """Give each of ``slots`` its missing pages, at least one; they must be available."""

    def break_pins(self, n: int) -> None:
        """``n`` pages more than are available become free, as far as pins hold that many."""

    # Sharing

    def find(self, slot: int) -> list[int]:
        """Listed pages that hold the next tokens of this sequence, in order."""

    def idle_among(self, pages: list[int]) -> int:
        """How many of these listed pages are available."""

    def adopt(self, slot: int, pages: list[int], now: float) -> int:
        """Append listed pages to a sequence's own; returns the tokens that need no computing."""

    def publish(self, slot: int, tokens: int, now: float) -> None:
        """List the pages that are full once ``tokens`` are computed."""

    # A step

    def moves(self) -> I32:
        """Copies to be made before the step that is being planned, as in ``StepPlan.moves``; asked before
        ``gather``."""

    def gather(self, slots: I32) -> tuple[I32, I32, I32]:
        """Page ids of each sequence: (first, count, pages), as in ``StepPlan``."""

    def mapping(self, slots: I32, end: I32) -> Mapping:
        """Where the pages of each sequence, which has ``end`` tokens after this step, are mapped side by
        side, and what is to be mapped for that; NO_MAPPING where pages are read where they lie."""

    def confirm(self) -> None:
        """The step has succeeded."""

    def retract(self) -> None:
        """Runs of the step have failed and are released."""

    def check(self) -> None:
        """Raise AssertionError unless every page is accounted for."""
