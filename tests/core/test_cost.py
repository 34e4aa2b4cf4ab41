"""More work never costs less, and a plan's shape counts what it computes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.cost import (
    DRAWN,
    MASKED,
    PLAIN,
    ConstantCost,
    CostTable,
    StepShape,
    choice_of,
    prompt_shape,
    shape_of,
)
from shoal.core.plan import EMIT_LOGPROBS, EMIT_TOKEN, SAMPLE, StepPlan
from shoal.core.request import Constraint, SamplingParams

increments = st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4)
tables = st.builds(
    lambda rows, emits, run, gathered, pair: CostTable(
        row_counts=(1, 4, 16, 64),
        row_seconds=tuple(np.cumsum(rows).tolist()),
        emit_counts=(1, 2, 8, 32),
        emit_seconds=tuple(np.cumsum(emits).tolist()),
        run=run,
        gathered=gathered,
        pair=pair,
    ),
    increments,
    increments,
    st.floats(0.0, 1.0),
    st.floats(0.0, 1e-3),
    st.floats(0.0, 1e-3),
)
shapes = st.builds(StepShape, *[st.integers(1, 200)] * 3, *[st.integers(1, 5000)] * 2)


@given(tables, shapes, st.integers(0, 4), st.integers(1, 500))
def test_more_of_anything_never_costs_less(table, shape, what, more):
    shape = shape._replace(gathered=max(shape.gathered, shape.rows))
    larger = shape._replace(**{StepShape._fields[what]: shape[what] + more})
    if what == 0:
        # A further row reads at least what it has just written.
        larger = larger._replace(gathered=shape.gathered + more)
    assert table.step(larger) >= table.step(shape) - 1e-9


@given(tables, st.integers(1, 300))
def test_more_rows_of_a_prompt_never_cost_less(table, count):
    assert table.rows(count + 1) >= table.rows(count) - 1e-9
    assert table.rows(count) == table.step(prompt_shape(count))


def test_a_table_is_read_between_and_beyond_its_points():
    table = CostTable(row_counts=(1, 3), row_seconds=(1.0, 5.0), emit_counts=(2,), emit_seconds=(4.0,))
    assert [table.rows(count) for count in (0, 1, 2, 3, 5)] == [0.0, 1.0, 3.0, 5.0, 9.0]
    assert table.step(StepShape(1, 1, 6, 1, 1)) == 1.0 + 12.0


def test_a_constant_step_takes_the_same_time_whatever_is_in_it():
    assert ConstantCost(0.5).step(StepShape(9, 9, 9, 99, 99)) == ConstantCost(0.5).rows(1) == 0.5


def test_the_shape_of_a_plan():
    def column(*values):
        return np.array(values, dtype=np.int32)

    # Slot 4 computes positions 2..4 and draws; slot 0 one row that scores a known token and one that draws;
    # slot 2 one row under a mask.
    plan = StepPlan(
        step=1,
        token=column(0, 0, 0, 0, 0, 0),
        position=column(2, 3, 4, 0, 1, 7),
        emit=column(0, 0, EMIT_TOKEN, EMIT_LOGPROBS, EMIT_TOKEN, EMIT_TOKEN),
        target=column(SAMPLE, SAMPLE, SAMPLE, 5, SAMPLE, SAMPLE),
        sequence=column(4, 0, 2),
        first_row=column(0, 3, 5),
        rows=column(3, 2, 1),
        first_page=column(0, 2, 3),
        page_count=column(2, 1, 2),
        pages=column(0, 1, 2, 3, 4),
    )
    bare = StepShape(rows=6, runs=3, emits=4, gathered=5 + 2 + 8, pairs=(3 + 4 + 5) + (1 + 2) + 8)
    assert shape_of(plan) == bare
    choice = column(DRAWN, PLAIN, MASKED, PLAIN, DRAWN + MASKED)
    assert shape_of(plan, choice) == bare._replace(drawn=2, masked=2)


def test_how_a_request_chooses_its_tokens():
    assert choice_of(SamplingParams(temperature=0.0)) == PLAIN
    assert choice_of(SamplingParams(temperature=0.7)) == DRAWN
    assert choice_of(SamplingParams(temperature=0.0, repetition_penalty=1.1)) == MASKED
    yes = Constraint(kind="choice", value=("yes", "no"))
    assert choice_of(SamplingParams(temperature=0.0, constraint=yes)) == MASKED
    assert choice_of(SamplingParams(temperature=1.0, constraint=yes)) == DRAWN + MASKED
