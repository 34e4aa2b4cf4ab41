"""Where a step's time goes: the methods that do its parts, timed from outside while somebody looks."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from shoal.engine.engine import Engine
from shoal.jobs.answers import AnswerWriter
from shoal.jobs.crew import Crew
from shoal.jobs.results import Results
from shoal.schedule import scheduler

STEP = "the loop"
"""What is left of a step when all that is named is taken away."""
FORWARD = "forward: "
CALL = FORWARD + "call"
ORDER = (
    *("rows in", "schedule", "plan columns", "executor", "inputs", FORWARD, "head", "sampling"),
    *("update", "deliver", "detokenise", "journal", STEP),
)


class Stages:
    """Seconds by stage. A stage within another is taken out of the outer one, so that all add up.

    As a context it puts every method back as it was.

    Attributes:
        seconds: by stage, so far.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._inner: list[float] = []
        self._undo: list[Callable[[], None]] = []
        self._kernels: list[Any] = []

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop looking."""
        while self._undo:
            self._undo.pop()()

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Time ``owner.name``, a method of an object, a class or a module, as part of ``stage``."""
        original = getattr(owner, name)
        own = name in vars(owner)
        self.seconds.setdefault(stage, 0.0)
        clock, inner, seconds = self._clock, self._inner, self.seconds

        def timed(*arguments: Any, **named: Any) -> Any:
            begin = clock()
            inner.append(0.0)
            try:
                return original(*arguments, **named)
            finally:
                took = clock() - begin
                seconds[stage] += took - inner.pop()
                if inner:
                    inner[-1] += took

        setattr(owner, name, timed)
        self._undo.append(lambda: setattr(owner, name, original) if own else delattr(owner, name))

    def watch_engine(self, engine: Engine) -> None:
        """Time the parts of every step of ``engine``."""
        executor: Any = engine.executor
        self.watch(engine.scheduler, "schedule", "schedule")
        self.watch(scheduler, "take_off", "plan columns")
        self.watch(executor, "submit", "executor")
        if model := getattr(executor, "model", None):
            self.watch(model, "inputs", "inputs")
            self.watch(model, "forward", CALL)
            self._watch_kernels(model)
            for name in ("logits", "best"):
                if hasattr(model, name):
                    self.watch(model, name, "head")
            for name in ("sample", "take"):
                if hasattr(executor.sampler, name):
                    self.watch(executor.sampler, name, "sampling")
        self.watch(engine.scheduler, "update", "update")
        self.watch(engine, "_deliver", "deliver")
        self.watch(engine, "step", STEP)

    def watch_job(self) -> None:
        """Time what a job does with rows and answers, wherever it runs in this process."""
        self.watch(Crew, "fill", "rows in")
        self.watch(AnswerWriter, "answer", "detokenise")
        self.watch(Results, "append", "journal")
        self.watch(Results, "sync", "journal")

    def _watch_kernels(self, model: Any) -> None:
        """Let the compiled kernels, if they compute this model, divide their own time."""
        session = getattr(model, "session", None)
        if session is None:
            return
        session.watch()
        self._kernels.append(session)
        self._undo.append(session.unwatch)

    def found(self) -> dict[str, float]:
        """Seconds by stage, in the order of a step; a forward pass is divided as far as its kernels say."""
        seconds = dict(self.seconds)
        for session in self._kernels:
            for name, took in session.stage_seconds().items():
                seconds[FORWARD + name] = seconds.get(FORWARD + name, 0.0) + took
                seconds[CALL] -= took
        return {name: seconds[name] for name in sorted(seconds, key=_place)}


def _place(stage: str) -> int:
    """In the order in which a step goes through them."""
    return ORDER.index(FORWARD if stage.startswith(FORWARD) else stage)
