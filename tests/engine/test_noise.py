from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engine.tensors.noise import exponential, gumbel, noise_keys
from tests.sizes import size

KNOWN_KEYS = [[0, 0], [-1077855714, -1792383466], [894524588, -512433248]]
KNOWN_NOISE = [
    [2.3283064e-10, 1.6966213, 2.2266076],
    [1.7844619, 0.54329348, 0.16114266],
    [0.084441893, 0.72766858, 2.0455306],
]


def keys_of(seeds: list[int], index: list[int]) -> torch.Tensor:
    return torch.from_numpy(noise_keys(np.array(seeds, dtype=np.uint64), np.array(index)))


@settings(deadline=None, max_examples=size(40, 500))
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1)), min_size=1, max_size=9))
def test_noise_is_the_same_in_any_company(rows):
    """Alone or among others, over all ids or some: the same bits for the same (seed, index, id)."""
    keys = keys_of([seed for seed, _ in rows], [index for _, index in rows])
    vocabulary = 300
    whole = gumbel(keys, torch.arange(vocabulary, dtype=torch.int32))
    ids = torch.randint(0, vocabulary, (len(rows), 37), dtype=torch.int32)
    assert torch.equal(gumbel(keys, ids), whole.gather(1, ids.long()))
    for i in range(len(rows)):
        assert torch.equal(
            gumbel(keys[i : i + 1], ids[i : i + 1, :5]), whole[i : i + 1].gather(1, ids[i : i + 1, :5].long())
        )


def test_known_values():
    """The noise of a published seed never changes: stored answers can be computed again."""
    keys = noise_keys(np.array([0, 1, 2**64 - 1], dtype=np.uint64), np.array([0, 7, 123456]))
    assert keys.tolist() == KNOWN_KEYS
    ids = torch.tensor([0, 1, 262143], dtype=torch.int32)
    assert exponential(torch.from_numpy(keys), ids).numpy() == pytest.approx(np.array(KNOWN_NOISE), rel=1e-6)


@pytest.mark.parametrize("axis", ["seed", "index", "token"])
def test_noise_is_exponential_and_neighbours_are_independent(axis):
    """exp(-noise) is uniform, and neighbours along each axis fill a 16 x 16 grid evenly."""
    n = 1 << 16
    many = np.arange(n + 1)
    zero = np.zeros(n + 1, dtype=np.int64)
    if axis == "token":
        noise = exponential(keys_of([5], [3]), torch.arange(n + 1, dtype=torch.int32))[0]
    else:
        seeds, index = (many, zero) if axis == "seed" else (zero, many)
        keys = torch.from_numpy(noise_keys(seeds.astype(np.uint64), index))
        noise = exponential(keys, torch.tensor([17], dtype=torch.int32))[:, 0]
    uniform = torch.exp(-noise.double()).numpy()
    cells = (uniform * 16).astype(int).clip(0, 15)
    counts = np.bincount(cells[:-1] * 16 + cells[1:], minlength=256)
    chi_square = float(((counts - n / 256) ** 2 / (n / 256)).sum())
    assert 150 < chi_square < 380  # 255 degrees of freedom: mean 255, deviation 23
    assert noise.min() > 0
    assert noise.mean().item() == pytest.approx(1.0, abs=0.02)


def test_resolution_at_the_winning_end():
    """The largest of many Gumbel draws is not one of a few steps: small exponentials are fine-grained."""
    smallest = exponential(
        keys_of(list(range(200)), [0] * 200), torch.arange(1 << 14, dtype=torch.int32)
    ).amin(1)
    assert len(set(smallest.tolist())) > 190
