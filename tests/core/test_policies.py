"""Policies by name: what one writes is what one gets, and the other way round."""

from __future__ import annotations

import pytest

from shoal.core.policies import POLICIES, make, specification
from shoal.reuse.forest_order import ForestOrder

LISTED = [(seam, name) for seam, names in POLICIES.items() for name in names]


@pytest.mark.parametrize(("seam", "name"), LISTED)
def test_a_policy_at_its_defaults_is_written_as_its_name(seam: str, name: str) -> None:
    assert specification(make(seam, name)) == name


def test_parameters_off_their_defaults_are_written() -> None:
    assert specification(ForestOrder(reorder=False)) == "forest:reorder=false"
    assert make("reuse", "forest:reorder=false") == ForestOrder(reorder=False)


def test_an_unlisted_policy_is_written_as_its_class() -> None:
    class Mine(ForestOrder):
        pass

    assert specification(Mine()).endswith("Mine")
