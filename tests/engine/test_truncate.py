from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engine.tensors import truncate
from shoal.engine.tensors.truncate import candidates
from tests.sizes import size


def brute_force(scaled: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The definition, token by token: best first, equal logits lowest id first."""
    order = sorted(
        (token for token in range(len(scaled)) if scaled[token] > -np.inf), key=lambda t: (-scaled[t], t)
    )
    kept = order[:top_k]
    if top_p < 1.0:
        mass = np.exp(scaled[kept].astype(np.float64))
        reached = np.cumsum(mass) / mass.sum() >= top_p
        kept = kept[: int(reached.argmax()) + 1 if reached.any() else len(kept)]
    return {token for token in kept if scaled[token] >= np.log(np.float32(min_p))} if min_p else set(kept)


def kept_sets(scaled: torch.Tensor, rows: list[tuple[int, float, float]]) -> list[set[int]]:
    top_k, top_p, min_p = zip(*rows, strict=True)
    ids, values = candidates(
        scaled,
        torch.tensor([min(k, scaled.shape[1]) for k in top_k]),
        torch.tensor(top_p, dtype=torch.float32),
        torch.tensor(min_p, dtype=torch.float32),
    )
    for i in range(len(rows)):
        inside = values[i] > -torch.inf
        assert torch.equal(values[i][inside], scaled[i][ids[i][inside].long()])
        assert torch.equal(ids[i][inside].sort().values, ids[i][inside]), (
            "ascending, so ties go to the lowest id"
        )
    return [set(ids[i][values[i] > -torch.inf].tolist()) for i in range(len(rows))]


@pytest.mark.parametrize("prefix", [1, 1024])
@settings(deadline=None, max_examples=size(60, 2000))
@given(data=st.data())
def test_kept_tokens_are_those_of_the_definition(prefix, data):
    """Many equal logits, excluded tokens, and rows with different limits in one call."""
    vocabulary = data.draw(st.integers(1, 40))
    step = data.draw(st.sampled_from([0.5, 0.013]))  # few distinct values, or few ties
    levels = st.one_of(st.integers(0, 30), st.just(-1))
    rows, matrix = [], []
    for _ in range(data.draw(st.integers(1, 5))):
        drawn = data.draw(st.lists(levels, min_size=vocabulary, max_size=vocabulary))
        row = np.array([-np.inf if level < 0 else -level * step for level in drawn], dtype=np.float32)
        row[data.draw(st.integers(0, vocabulary - 1))] = 0.0
        matrix.append(row)
        # Odd decimals, so that no sum of probabilities meets top-p on the nose.
        limits = (
            data.draw(st.one_of(st.just(1 << 40), st.integers(1, 45))),
            data.draw(st.sampled_from([1.0, 0.1234567, 0.5012345, 0.9012345, 0.9991234])),
            data.draw(st.sampled_from([0.0, 0.0512345, 0.3012345, 1.0])),
        )
        rows.append(limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truncate, "PREFIX", prefix)
        found = kept_sets(torch.from_numpy(np.stack(matrix)), rows)
    assert found == [brute_force(row, *limits) for row, limits in zip(matrix, rows, strict=True)]


def test_the_token_that_crosses_top_p_is_kept():
    scaled = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]) / 0.5)
    assert kept_sets(scaled, [(4, 0.6, 0.0)]) == [{0, 1}]
    assert kept_sets(scaled, [(4, 0.49, 0.0)]) == [{0}]
    assert kept_sets(scaled, [(2, 0.7, 0.0)]) == [{0, 1}], "top-p is a share of what top-k left: 0.625 < 0.7"


def test_a_flat_row_reaches_past_the_prefix():
    vocabulary = truncate.PREFIX * 3
    scaled = torch.zeros((2, vocabulary))
    kept = kept_sets(scaled, [(vocabulary, 0.90003, 0.0), (7, 1.0, 0.0)])
    assert kept[0] == set(range(int(vocabulary * 0.90003) + 1))
    assert kept[1] == set(range(7))
