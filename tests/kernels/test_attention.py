"""Attention over pages against the definition, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels import attention
from shoal.kernels.attention import attend, group_reads, write
from tests.sizes import size


@dataclass(frozen=True)
class Case:
    """Runs as (start, rows), over a cache of one layer."""

    runs: list[tuple[int, int]]
    page_size: int
    kv_heads: int
    share: int
    head_size: int
    window: int | None
    seed: int


runs = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=6)
cases = st.builds(
    Case,
    runs=runs,
    page_size=st.sampled_from([1, 4, 16]),
    kv_heads=st.integers(1, 3),
    share=st.integers(1, 3),
    head_size=st.sampled_from([4, 8]),
    window=st.none() | st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)


class Step:
    """One step's rows over shuffled pages; slots that belong to no position hold no number at all."""

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(case.seed)
        generator = torch.Generator().manual_seed(case.seed)
        self.case = case
        size = case.page_size
        self.start = np.array([start for start, _ in case.runs], dtype=np.int64)
        self.rows = np.array([rows for _, rows in case.runs], dtype=np.int64)
        self.first_row = np.cumsum(self.rows) - self.rows
        counts = -(-(self.start + self.rows) // size)
        self.first_page = np.cumsum(counts) - counts
        pages = int(counts.sum()) + 2
        self.pages = rng.permutation(pages)[: int(counts.sum())]
        shape = (case.kv_heads, pages, size, case.head_size)
        self.keys, self.values = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
        total = int(self.rows.sum())
        self.query = torch.randn(total, case.kv_heads * case.share, case.head_size, generator=generator)
        self.written = [
            torch.randn(2, int(start + rows), case.kv_heads, case.head_size, generator=generator)
            for start, rows in case.runs
        ]
        for run, (key, value) in enumerate(self.written):
            slots = torch.from_numpy(self.slots(run))
            write(self.keys, slots, key)
            write(self.values, slots, value)

    def slots(self, run: int) -> np.ndarray:
        place = np.arange(self.start[run] + self.rows[run])
        page = self.pages[self.first_page[run] + place // self.case.page_size]
        return page * self.case.page_size + place % self.case.page_size

    def groups(self) -> list[attention.Group]:
        return group_reads(
            self.first_row,
            self.rows,
            self.start,
            self.first_page,
            self.pages,
            page_size=self.case.page_size,
            heads=self.case.kv_heads * self.case.share,
            kv_width=self.case.kv_heads * self.case.head_size,
            window=self.case.window,
            device=torch.device("cpu"),
        )

    def computed(self, scale: float) -> torch.Tensor:
        return attend(self.query, self.keys, self.values, self.groups(), scale)

    def defined(self, scale: float) -> torch.Tensor:
        output = torch.empty(self.query.shape, dtype=torch.float64)
        for run, (key, value) in enumerate(self.written):
            for row in range(int(self.rows[run])):
                position = int(self.start[run]) + row
                low = 0 if self.case.window is None else max(0, position - self.case.window + 1)
                for head in range(self.query.shape[1]):
                    k = key[low : position + 1, head // self.case.share].double()
                    v = value[low : position + 1, head // self.case.share].double()
                    weights = torch.softmax(
                        k @ self.query[self.first_row[run] + row, head].double() * scale, 0
                    )
                    output[self.first_row[run] + row, head] = weights @ v
        return output.flatten(1)


@given(cases)
@settings(max_examples=size(60, 600), deadline=None)
def test_every_row_reads_what_it_may_and_nothing_else(case: Case) -> None:
    step = Step(case)
    torch.testing.assert_close(step.computed(0.5).double(), step.defined(0.5), atol=2e-5, rtol=1e-4)


@given(cases, st.integers(1, 7), st.sampled_from([1, 2000, 20_000]))
@settings(max_examples=size(40, 400), deadline=None)
def test_pieces_and_scratch_do_not_change_the_answer(case: Case, piece: int, scratch: int) -> None:
    step = Step(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "PIECE_ROWS", piece)
        patch.setattr(attention, "SCRATCH_BYTES", scratch)
        patch.setattr(attention, "GROUP_BYTES", scratch)
        found = step.computed(0.5)
    torch.testing.assert_close(found.double(), step.defined(0.5), atol=2e-5, rtol=1e-4)


def test_a_long_prompt_makes_no_long_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([(3000, 700), (0, 900)], 16, 1, 4, 8, None, 1)
    step = Step(case)
    largest = 0
    plain = torch.bmm

    def watched(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        product = plain(first, second)
        largest = max(largest, product.nbytes, first.nbytes, second.nbytes)
        return product

    monkeypatch.setattr(torch, "bmm", watched)
    monkeypatch.setattr(attention, "SCRATCH_BYTES", 1 << 20)
    monkeypatch.setattr(attention, "GROUP_BYTES", 1 << 20)
    step.computed(0.5)
    assert 1 << 18 < largest <= 1 << 20


def test_a_window_reads_its_own_pages_only() -> None:
    step = Step(Case([(4000, 1)], 16, 1, 1, 8, 64, 1))
    step.keys.index_fill_(1, torch.from_numpy(step.pages[: (4000 - 63) // 16]), torch.inf)
    step.values.index_fill_(1, torch.from_numpy(step.pages[: (4000 - 63) // 16]), torch.inf)
    torch.testing.assert_close(step.computed(0.5).double(), step.defined(0.5), atol=2e-5, rtol=1e-4)


@st.composite
def neighbours(draw):
    """Runs of one page each, on pages that follow each other here and there; several runs may be pieces."""
    count = draw(st.integers(1, 7))
    rows = st.just(1) | st.integers(1, 30)
    runs = draw(st.lists(st.tuples(st.integers(0, 90), rows), min_size=count, max_size=count))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.sampled_from([4, 8])))
    case = Case(runs, 128, *shape, draw(st.none() | st.integers(1, 60)), draw(st.integers(0, 2**32 - 1)))
    return case, draw(st.permutations(range(count)))


def placed(case: Case, order: list[int]) -> Step:
    """Slots that hold no number lie in pages that nobody reads; in others stands what was left there."""
    step = Step(case)
    for cache in (step.keys, step.values):
        used = cache[:, step.pages].nan_to_num(nan=7.0)
        cache.fill_(torch.nan)
        cache[:, 1 + np.array(order)] = used
    step.pages = 1 + np.array(order)
    return step


@given(neighbours())
@settings(max_examples=size(60, 600), deadline=None)
def test_pages_as_long_as_sequences_are_read_where_they_lie(drawn) -> None:
    step = placed(*drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "PIECE_ROWS", 8)
        gathered = attention._gather
        patch.setattr(attention, "_gather", None)
        found = step.computed(0.5)
        patch.setattr(attention, "_gather", gathered)
        patch.setattr(attention, "LONG_PAGE", 1 << 20)
        wanted = step.computed(0.5)
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found.double(), step.defined(0.5), atol=2e-5, rtol=1e-4)


@given(neighbours())
@settings(max_examples=size(30, 300), deadline=None)
def test_what_is_no_number_in_a_place_that_is_read_changes_nothing(drawn) -> None:
    """Left there by a sequence that overflowed; beyond the positions of the present one."""
    step = Step(drawn[0])
    torch.testing.assert_close(step.computed(0.5).double(), step.defined(0.5), atol=2e-5, rtol=1e-4)


def test_neighbours_of_equal_length_are_one_group_and_no_more_is_read_than_needed() -> None:
    step = placed(Case([(100 + i, 1) for i in range(6)], 2048, 2, 2, 8, 32, 1), [3, 0, 1, 2, 5, 4])
    groups = step.groups()
    assert [(group.pieces, group.place) for group in groups] == [(6, 1)]
    assert groups[0].part == slice(64, 112)
    step = placed(Case([(100, 1), (1000, 1), (110, 1), (101, 1)], 2048, 2, 2, 8, None, 1), [0, 1, 2, 3])
    assert [group.pieces for group in step.groups()] == [1, 1, 2], (
        "short ones do not read a long one's length"
    )


def test_bfloat16_is_scored_in_float32() -> None:
    step = Step(Case([(5, 9), (30, 1)], 4, 2, 2, 8, None, 3))
    wanted = step.computed(0.5)
    for name in ("query", "keys", "values"):
        setattr(step, name, getattr(step, name).to(torch.bfloat16))
    found = step.computed(0.5)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0.05, rtol=0.05)
