"""Claims: what holds, what is judged, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shoal.core.errors import InternalError, OperatorError
from shoal.experiments import picture, registry
from shoal.experiments.claims import Findings, Outcome, Trial
from shoal.experiments.text import number


def findings(quick: bool = False) -> Findings:
    return Findings(Trial(quick=quick))


@pytest.mark.parametrize(
    ("value", "op", "threshold", "passed"),
    [
        (2, ">=", 2, True),
        (2, ">", 2, False),
        (2, "<", 2, False),
        (2, "<=", 2, True),
        (2, "==", 2, True),
        (2, "==", 3, False),
        (np.float32(0.5), ">=", 0.25, True),
        (True, "==", True, True),
        (math.nan, "<=", 1, False),
        (math.inf, ">=", 1, False),
    ],
)
def test_a_claim_holds_as_its_operator_says(value, op, threshold, passed):
    found = findings()
    found.counted("it", value, op, threshold)
    assert found.claims[0].passed is passed


def test_a_quick_trial_judges_what_is_counted_only():
    for quick in (False, True):
        found = findings(quick)
        found.counted("steps", 1, "<=", 2)
        found.clocked("seconds", 1, "<=", 2)
        found.needs("at scale", "simulate")
        assert [claim.judged for claim in found.claims] == [True, not quick, False]
        assert [claim.passed for claim in found.claims] == [True, None if quick else True, None]


def test_an_outcome_passes_if_something_was_judged_and_all_of_it_holds():
    def passed(*values: int) -> bool:
        found = findings()
        for place, value in enumerate(values):
            found.counted(f"claim {place}", value, "==", 1)
        found.needs("more", "simulate")
        return Outcome("it", found.trial, tuple(found.claims), (), None, 0.0).passed

    assert passed(1, 1)
    assert not passed(1, 0)
    assert not passed()


def test_numbers_out_of_numpy_are_plain_and_whole_ones_stay_whole():
    found = findings()
    found.counted("it", np.int64(2**53 + 1), "==", 2**53 + 1, baseline=np.float64(1.5))
    (claim,) = found.claims
    assert (claim.value, type(claim.value), claim.baseline) == (2**53 + 1, int, 1.5)
    assert claim.passed


def test_mistakes_of_an_experiment_are_faults():
    found = findings()
    found.counted("it", 1, "==", 1)
    with pytest.raises(InternalError, match="stated twice"):
        found.clocked("it", 1, "==", 1)
    with pytest.raises(InternalError, match="compares by '='"):
        found.counted("other", 1, "=", 1)
    with pytest.raises(InternalError, match="2 columns"):
        found.table("figures", ["a", "b"], [[1, 2], [1]])


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (1234.56, "1,235"), (0.12345, "0.1235"), (2.0, "2"), ("a", "a"), (None, "")],
)
def test_cells(value, text):
    assert number(value) == text


def test_a_picture_with_too_many_strokes_becomes_pixels(tmp_path):
    numbers = np.random.default_rng(0).random(20_000)
    for count, ending in ((10, ".svg"), (20_000, ".png")):
        outcome = Outcome(
            "it",
            Trial(),
            (),
            (),
            lambda f, count=count: f.subplots().scatter(numbers[:count], numbers[:count]),
            0.0,
        )
        written = picture.save(outcome, tmp_path / "it.svg")
        assert written.suffix == ending
        assert 1000 < written.stat().st_size < picture.LARGEST
        assert list(tmp_path.iterdir()) == [written]
        written.unlink()


def test_unknown_experiments_are_refused_with_the_valid_ones():
    with pytest.raises(OperatorError, match=r"did you mean 'batchllm'\? valid: batchllm"):
        registry.reproduce("batchlm")


def test_a_legend_hides_no_data(tmp_path):
    seen = []

    def draw(figure):
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], label="a line")
        axes.legend()
        seen.append((figure, axes))

    assert picture.save(Outcome("it", Trial(), (), (), draw, 0.0), tmp_path / "it.png")
    ((figure, axes),) = seen
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1
    assert axes.get_legend().get_window_extent().y1 <= figure.bbox.y1
