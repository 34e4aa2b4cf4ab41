"""Stages add up, and leave everything as it was."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.bench.stages import STEP, Stages
from shoal.core.config import EngineConfig
from shoal.core.request import Request, SamplingParams
from shoal.engine.build import prepare, start
from shoal.schedule import scheduler


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Worker:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def outer(self) -> str:
        self.clock.now += 1.0
        self.inner()
        self.inner()
        self.clock.now += 0.5
        return "done"

    def inner(self) -> None:
        self.clock.now += 2.0

    def broken(self) -> None:
        self.clock.now += 4.0
        raise ValueError


def test_what_is_within_is_taken_out_of_what_is_around_it() -> None:
    clock = Clock()
    worker = Worker(clock)
    with Stages(clock) as stages:
        stages.watch(worker, "outer", "schedule")
        stages.watch(worker, "inner", "executor")
        stages.watch(Worker, "broken", "update")
        assert worker.outer() == "done"
        with pytest.raises(ValueError):
            worker.broken()
        found = stages.found()
    assert found == {"schedule": 1.5, "executor": 4.0, "update": 4.0}
    assert list(found) == ["schedule", "executor", "update"]
    assert not {"outer", "inner"} & vars(worker).keys()
    worker.outer()
    with pytest.raises(ValueError):
        worker.broken()
    assert stages.found() == found


def test_a_whole_engine_is_put_back_as_it_was() -> None:
    engine = start(prepare(EngineConfig(model="null")))
    take_off = scheduler.take_off
    with Stages() as stages:
        stages.watch_engine(engine)
        assert scheduler.take_off is not take_off
        params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
        engine.add(Request(id="a", prompt=np.arange(3, 9, dtype=np.int32), params=params), 0.0)
        while not engine.idle:
            engine.step(0.0)
        found = stages.found()
    assert scheduler.take_off is take_off
    assert "step" not in vars(engine)
    assert all(seconds > 0.0 for seconds in found.values())
    assert {"schedule", "plan columns", "executor", "update", "deliver", STEP} == set(found)
