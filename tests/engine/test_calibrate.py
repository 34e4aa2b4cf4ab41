"""What is measured is what a plan costs, and measuring keeps to its budget."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.config import EngineConfig
from shoal.core.cost import CostTable, Paced, StepShape, choice_of, shape_of
from shoal.core.errors import InternalError
from shoal.core.plan import StepResult
from shoal.engine.build import prepare, start
from shoal.engine.calibrate import calibrate, pace
from shoal.engine.costs import measure
from shoal.engine.priced import JumpingClock, PricedExecutor
from tests.engine.harness import drain
from tests.engine.test_model_executor import ask
from tests.models.tiny import VARIANTS, reference, save

TRUE = CostTable(
    row_counts=(1, 64, 1024),
    row_seconds=(2e-3, 4e-3, 40e-3),
    emit_counts=(1, 128),
    emit_seconds=(1e-4, 4e-3),
    run=2e-5,
    gathered=3e-7,
    pair=2e-8,
    drawn=5e-5,
    masked=4e-4,
)


class Strict(PricedExecutor):
    """Checks every plan, and which slots are open."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.opened, self.plans = {}, []

    def open(self, slot, request):
        super().open(slot, request)
        self.opened[slot] = choice_of(request.params)

    def close(self, slot):
        del self.opened[slot]

    def submit(self, plan):
        plan.check(self.page_size)
        assert plan.pages.min() >= 0
        assert plan.pages.max() < self.pages
        emitting = plan.run_of_row()[plan.emitting_rows()]
        assert set(plan.sequence[emitting].tolist()) <= set(self.opened)
        self.plans.append(plan)
        super().submit(plan)


def priced(pages=4096, page_size=16):
    clock = JumpingClock()
    return Strict(TRUE, clock, pages, page_size, 1000), clock


@pytest.mark.parametrize(("pages", "page_size", "longest"), [(4096, 16, 2048), (8, 16, 120), (40, 256, 256)])
def test_the_cost_behind_the_steps_is_found(pages, page_size, longest):
    executor, clock = priced(pages, page_size)
    found = calibrate(executor, longest, 1 << 10, masks=True, clock=clock)
    assert not executor.opened, "every slot is closed again"
    assert found.seconds <= 30.0
    for shape, seconds in found.steps:
        assert seconds == pytest.approx(TRUE.step(shape), rel=1e-6)
    plans = [shape_of(plan) for plan in executor.plans]
    assert any(shape.runs > 1 for shape in plans)
    for shape in plans:
        assert found.table.step(shape) == pytest.approx(TRUE.step(shape), rel=0.25)
    assert found.table.masked == pytest.approx(TRUE.masked, rel=0.25)
    assert any(shape.masked for shape, _ in found.steps)
    if longest > 1000:
        decodes = StepShape(rows=50, runs=50, emits=50, gathered=40_000, pairs=40_000)
        assert found.table.step(decodes) == pytest.approx(TRUE.step(decodes), rel=0.05)


@pytest.mark.parametrize("speed", [1e-3, 1.0, 300.0])
def test_it_keeps_to_its_budget_on_any_machine(speed):
    executor, clock = priced()
    executor.cost = CostTable(row_counts=(1, 1024), row_seconds=(2e-3 * speed, 5.0 * speed))
    shares = []
    found = calibrate(executor, 2048, 1 << 10, clock=clock, progress=lambda what, share: shares.append(share))
    assert found.seconds < 60.0
    assert shares == sorted(shares)
    assert found.table.rows(1) == pytest.approx(2e-3 * speed, rel=0.2)


@pytest.mark.parametrize(("pages", "page_size", "longest"), [(4096, 16, 2048), (8, 16, 120), (40, 256, 256)])
def test_the_speed_of_the_moment_is_found(pages, page_size, longest):
    executor, clock = priced(pages, page_size)
    executor.cost = Paced(TRUE, 1.3)
    assert pace(executor, longest, 1 << 10, TRUE, clock=clock) == pytest.approx(1.3)
    assert not executor.opened
    assert clock() < 6.0


def test_who_reports_progress_may_stop_it_at_once():
    executor, clock = priced()

    def stop(what, share):
        if what == "64 rows":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(executor, 2048, 1 << 10, clock=clock, progress=stop)
    assert not executor.opened


def test_a_step_that_fails_ends_it():
    executor, clock = priced()

    def broken(plan):
        error = ValueError("no such unit")
        executor._ready.append(StepResult(plan.step, np.zeros(0, np.int32), 0.0, failures={0: error}))

    executor.submit = broken
    with pytest.raises(InternalError, match="no such unit"):
        calibrate(executor, 2048, 1 << 10, clock=clock)


@pytest.mark.parametrize("layout", ["paged", "slots"])
def test_a_real_model_is_measured_in_moments(tmp_path, layout):
    folder = save(reference(VARIANTS[0]), tmp_path)
    config = EngineConfig(model=str(folder), kv_memory=8 << 20, threads=1, max_num_seqs=8, layout=layout)
    prepared = prepare(config)
    engine = start(prepared)
    found = measure(prepared, engine, budget=1.0)
    assert found.table.rows(64) >= found.table.rows(1) > 0.0
    assert all(np.isfinite(seconds) for _, seconds in found.steps)
    # An engine that never saw the measuring answers as before.
    engine.add(ask("after", [5, 6, 7]), 0.0)
    with pytest.raises(InternalError, match="idle"):
        measure(prepared, engine)
    assert len(drain(engine)["after"].tokens) == 6
