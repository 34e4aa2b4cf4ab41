"""What happened, told to policies. A closed set of small structs; the only input to a policy's own state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from shoal.core.request import FinishReason


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request became a waiting sequence."""

    handle: int
    now: float
    prompt: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """A waiting sequence entered the running set; ``cached`` of its tokens came from the prefix cache."""

    handle: int
    now: float
    cached: int


@dataclass(frozen=True, slots=True)
class Preempted:
    """A running sequence gave its pages back; ``lost`` computed tokens may have to be computed again."""

    handle: int
    now: float
    lost: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A sequence left, for whatever reason; ``output`` tokens were produced."""

    handle: int
    now: float
    reason: FinishReason
    output: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step's result was taken in: ``rows`` computed for ``runs`` sequences."""

    step: int
    now: float
    rows: int
    runs: int


Event: TypeAlias = Arrived | Admitted | Preempted | Ended | StepDone
EVENTS = (Arrived, Admitted, Preempted, Ended, StepDone)
