"""Each compiled kernel against its twin on random shapes, and against itself in other company, to the bit."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.kernels import native
from shoal.kernels.attention import attend, group_reads, write
from shoal.kernels.plain import gated, linear, rms_norm, rotary_table, rotate
from tests.sizes import size

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels were not built")

SETS = ("portable", "AVX2", "")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def sessions() -> dict[tuple[str, int], native.Session]:
    return {(name, threads): native.Session(threads, name) for name in SETS for threads in (1, 2, 5)}


def pack(session: native.Session, weight: Tensor, bias: Tensor | None = None) -> tuple[native.Matrix, Tensor]:
    """A packed copy, and the storage that it lies in."""
    room = torch.full((native.padded_rows(len(weight)), weight.shape[1]), torch.nan, dtype=weight.dtype)
    room[: len(weight)] = weight
    session.pack(room[: len(weight)])
    return native.matrix(room[: len(weight)], bias), room


def product(session: native.Session, x: Tensor, matrix: native.Matrix, dtype: torch.dtype) -> Tensor:
    y = torch.full((len(x), matrix.outputs), torch.nan)
    narrow = int(dtype == torch.bfloat16)
    session.call("product", x.data_ptr(), len(x), ctypes.byref(matrix), y.data_ptr(), narrow, -1)
    return y


@given(
    rows=st.integers(0, 40) | st.sampled_from([100, 257]),
    outputs=st.integers(1, 80),
    inputs=st.integers(1, 70) | st.sampled_from([700]),
    biased=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    name=st.sampled_from(SETS),
    threads=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=size(80, 2000), deadline=None)
def test_product(sessions, rows, outputs, inputs, biased, dtype, name, threads, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype) if biased else None
    session = sessions[name, threads]
    matrix, room = pack(session, weight, bias)
    found = product(session, x, matrix, dtype)
    taken = x.bfloat16() if session.pairs and dtype == torch.bfloat16 else x
    wanted = linear(taken.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(found.double(), wanted, atol=1e-4 + 1e-6 * inputs, rtol=1e-5)
    some = torch.randperm(rows, generator=generator)[:5]
    fewer = product(session, x[some].contiguous(), matrix, dtype)
    assert torch.equal(fewer, found[some]), "other bits in other company"
    chosen = torch.randint(0, outputs, (3,), generator=generator)
    unpacked = torch.empty(3, inputs)
    narrow = int(dtype == torch.bfloat16)
    session.call("unpack", ctypes.byref(matrix), narrow, chosen.data_ptr(), 3, unpacked.data_ptr())
    assert torch.equal(unpacked, weight[chosen].float())
    assert room.isfinite().all()


@given(
    rows=st.integers(0, 40) | st.sampled_from([100, 257]),
    tiles=st.integers(1, 4),
    inputs=st.integers(1, 70) | st.sampled_from([700]),
    biased=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    name=st.sampled_from(SETS),
    threads=st.sampled_from([1, 2, 5]),
    activation=st.sampled_from([0, 1]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=size(60, 1000), deadline=None)
def test_gated_product(sessions, rows, tiles, inputs, biased, dtype, name, threads, activation, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    session, outputs = sessions[name, threads], 2 * native.TILE * tiles
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype) if biased else None
    matrix, room = pack(session, weight, bias)
    pairs = session.pairs and dtype == torch.bfloat16
    found = torch.full((rows, outputs // 2), torch.nan, dtype=torch.bfloat16 if pairs else torch.float32)
    narrow = int(dtype == torch.bfloat16)
    pointers = x.data_ptr(), rows, ctypes.byref(matrix), found.data_ptr()
    session.call("product", *pointers, narrow, activation)
    both = product(session, x, matrix, dtype)
    wanted = gated(both, ("silu", "gelu_tanh")[activation])
    near = {"atol": 1e-2, "rtol": 1e-2} if pairs else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(found.float(), wanted, **near)
    assert room is not None


@given(
    rows=st.integers(0, 40) | st.sampled_from([100, 257]),
    outputs=st.integers(1, 200),
    levels=st.sampled_from([1, 2, 1000]),
    broken=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    name=st.sampled_from(SETS),
    threads=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=size(60, 1000), deadline=None)
def test_best(sessions, rows, outputs, levels, broken, dtype, name, threads, seed) -> None:
    """Few levels of logits make many of them equal."""
    generator = torch.Generator().manual_seed(seed)
    session = sessions[name, threads]
    hidden = torch.randn(rows, 32, generator=generator)
    if broken and rows:
        hidden[0, 3] = torch.nan
    weight = (torch.randint(0, levels, (outputs, 1), generator=generator) / levels - 0.5).expand(-1, 32)
    matrix, room = pack(session, weight.contiguous().to(dtype))
    norm = torch.ones(32)
    model = native.Model(
        bf16=int(dtype == torch.bfloat16),
        hidden=32,
        head=matrix,
        head_norm=norm.data_ptr(),
        head_epsilon=1e-5,
    )
    logits = torch.full((rows, outputs), torch.nan)
    session.call("head", ctypes.byref(model), hidden.data_ptr(), rows, logits.data_ptr())
    found = np.empty(rows, dtype=native.BEST)
    session.call("best", ctypes.byref(model), hidden.data_ptr(), rows, found.ctypes.data)
    values, tokens = found["value"], found["output"]
    for row in range(rows):
        wanted = logits[row].numpy()
        if np.isnan(wanted).any():
            assert np.isnan(values[row])
        else:
            assert values[row] == wanted.max()
            assert tokens[row] == wanted.argmax()
    assert room is not None


@given(
    width=st.integers(1, 70),
    name=st.sampled_from(SETS),
    seed=st.integers(0, 2**31),
    factor=st.sampled_from([1e-3, 1.0, 30.0]),
)
@settings(max_examples=size(60, 1000), deadline=None)
def test_norm_and_activation(sessions, width, name, seed, factor) -> None:
    generator = torch.Generator().manual_seed(seed)
    session = sessions[name, 1]
    x, weight = factor * torch.randn(width, generator=generator), torch.randn(width, generator=generator)
    found = torch.empty(width)
    session.call_plain("norm", x.data_ptr(), weight.data_ptr(), found.data_ptr(), width, 1e-5)
    torch.testing.assert_close(found, rms_norm(x[None], weight, 1e-5)[0], atol=1e-5, rtol=1e-5)
    both = factor * torch.randn(2 * width, generator=generator)
    for number, activation in enumerate(("silu", "gelu_tanh")):
        session.call_plain("activate", both.data_ptr(), found.data_ptr(), width, number)
        torch.testing.assert_close(found, gated(both[None], activation)[0], atol=1e-5, rtol=1e-4)


@dataclass(frozen=True)
class Case:
    """Runs as (start, rows) over a cache of one layer. The first pages of every run are the first run's, as
    far as both reach and ``shared`` says; those positions hold the same K and V."""

    runs: list[tuple[int, int]]
    shared: int
    page_size: int
    kv_heads: int
    share: int
    head_size: int
    window: int | None
    normed: bool
    dtype: torch.dtype
    seed: int


cases = st.builds(
    Case,
    runs=st.lists(
        st.tuples(st.integers(0, 300), st.integers(1, 40) | st.sampled_from([1, 150])), min_size=1, max_size=6
    ),
    shared=st.sampled_from([0, 0, 128, 200, 256]),
    page_size=st.sampled_from([1, 4, 7, 16, 24, 32, 128, 500]),
    kv_heads=st.integers(1, 3),
    share=st.integers(1, 4),
    head_size=st.sampled_from([2, 16, 24, 64]),
    window=st.none() | st.integers(1, 200),
    normed=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)


class Attention:
    """What the model's first layer computes of q, k and v, compiled and plain."""

    def __init__(self, case: Case) -> None:
        self.case = case
        rng, generator = np.random.default_rng(case.seed), torch.Generator().manual_seed(case.seed)
        self.ends = [start + rows for start, rows in case.runs]
        counts = [-(-end // case.page_size) for end in self.ends]
        ids = rng.permutation(sum(counts) + 2).astype(np.int32)
        self.total = len(ids)
        self.pages = np.split(ids[: sum(counts)], np.cumsum(counts)[:-1])
        width = (case.kv_heads * (case.share + 2)) * case.head_size
        self.rows = [torch.randn(end, width, generator=generator) for end in self.ends]
        for run, (start, _) in enumerate(case.runs[1:], 1):
            # Whole pages of what the first run has and this one does not compute.
            same = min(case.shared, self.ends[0], start) // case.page_size
            self.pages[run][:same] = self.pages[0][:same]
            self.rows[run][: same * case.page_size] = self.rows[0][: same * case.page_size]
        self.norms = torch.randn(2, case.head_size, generator=generator)
        inverse = torch.rand(case.head_size // 2, generator=generator)
        self.turns = rotary_table(torch.arange(max(self.ends)), inverse, 1.0)
        self.scale = case.head_size**-0.5

    def compiled(self, session: native.Session, runs: list[tuple[int, int, int]]) -> list[Tensor]:
        """Steps of (run, first row, rows), all rows before written first; results of the last step by run."""
        case = self.case
        values = (case.kv_heads, self.total, case.page_size * native.padded_rows(case.head_size))
        keys = (case.kv_heads, self.total, native.padded_rows(case.page_size) * case.head_size)
        self.cache = [torch.full(shape, torch.nan, dtype=case.dtype) for shape in (keys, values)]
        for run, (start, _) in enumerate(case.runs):
            if start:
                self.step(session, [(run, 0, start)])
        return self.step(session, runs)

    def step(self, session: native.Session, runs: list[tuple[int, int, int]]) -> list[Tensor]:
        case, heads = self.case, self.case.kv_heads * self.case.share
        wide = torch.cat([self.rows[run][first : first + count] for run, first, count in runs])
        mixed = torch.full((len(wide), heads * case.head_size), torch.nan)
        counts = np.array([count for *_, count in runs], dtype=np.int32)
        sizes = np.array([len(self.pages[run]) for run, *_ in runs], dtype=np.int32)
        arrays = (
            np.zeros(len(wide), dtype=np.int32),
            np.concatenate([np.arange(first, first + count) for _, first, count in runs]).astype(np.int32),
            (np.cumsum(counts) - counts).astype(np.int32),
            counts,
            (np.cumsum(sizes) - sizes).astype(np.int32),
            np.concatenate([self.pages[run] for run, *_ in runs]),
        )
        table = native.Turns(*(half.data_ptr() for half in self.turns))
        turns = (native.Turns * native.MOST_TURNS)(table)
        step = native.Step(len(wide), len(runs), *(array.ctypes.data for array in arrays), None, turns)
        layer = native.Layer(
            keys=self.cache[0].data_ptr(),
            values=self.cache[1].data_ptr(),
            query_norm=self.norms[0].data_ptr() if case.normed else None,
            key_norm=self.norms[1].data_ptr() if case.normed else None,
            heads=heads,
            kv_heads=case.kv_heads,
            head_size=case.head_size,
            window=case.window or 0,
            epsilon=1e-5,
            scale=self.scale,
        )
        model = native.Model(
            bf16=int(case.dtype == torch.bfloat16), hidden=1, layer_count=1, layers=ctypes.pointer(layer)
        )
        shape = native.Cache(self.total, case.page_size)
        pointers = (ctypes.byref(each) for each in (model, shape, step))
        session.call("attention", *pointers, wide.data_ptr(), mixed.data_ptr())
        return list(mixed.split(counts.tolist()))

    def plain(self) -> list[Tensor]:
        case = self.case
        heads, size = case.kv_heads * case.share, case.head_size
        shape = (case.kv_heads, self.total, case.page_size, size)
        keys, values = torch.zeros(shape), torch.zeros(shape)
        asked = []
        for run, (start, count) in enumerate(case.runs):
            query, key, value = (
                self.rows[run]
                .view(-1, heads + 2 * case.kv_heads, size)
                .split([heads, case.kv_heads, case.kv_heads], dim=1)
            )
            if case.normed:
                query, key = (rms_norm(x, w, 1e-5) for x, w in zip((query, key), self.norms))
            turn = [half[: self.ends[run]] for half in self.turns]
            place = np.arange(self.ends[run])
            slots = self.pages[run][place // case.page_size].astype(np.int64) * case.page_size
            slots = torch.from_numpy(slots + place % case.page_size)
            write(keys, slots, rotate(key, *turn).to(case.dtype))
            write(values, slots, value.to(case.dtype))
            asked.append(rotate(query, *turn)[start : start + count])
        counts = np.array([count for _, count in case.runs], dtype=np.int64)
        sizes = np.array([len(pages) for pages in self.pages], dtype=np.int64)
        groups = group_reads(
            np.cumsum(counts) - counts,
            counts,
            np.array([start for start, _ in case.runs], dtype=np.int64),
            np.cumsum(sizes) - sizes,
            np.concatenate(self.pages).astype(np.int64),
            page_size=case.page_size,
            heads=heads,
            kv_width=case.kv_heads * size,
            window=case.window,
            device=torch.device("cpu"),
        )
        return list(attend(torch.cat(asked), keys, values, groups, self.scale).split(counts.tolist()))


@given(case=cases, name=st.sampled_from(SETS), threads=st.sampled_from([1, 2, 5]))
@settings(max_examples=size(60, 1500), deadline=None)
def test_attention(sessions, case: Case, name: str, threads: int) -> None:
    session, attention = sessions[name, threads], Attention(case)
    whole = [(run, start, count) for run, (start, count) in enumerate(case.runs)]
    together = attention.compiled(session, whole)
    # A key that the two round to bfloat16 from either side of a border differs by a whole unit there.
    near = {"atol": 2e-3, "rtol": 1e-2} if case.dtype == torch.bfloat16 else {"atol": 2e-4, "rtol": 2e-4}
    for found, wanted in zip(together, attention.plain()):
        torch.testing.assert_close(found, wanted, **near)
    for run, start, count in whole:
        alone = attention.compiled(session, [(run, start, count)])[0]
        assert torch.equal(alone, together[run]), "other bits alone"
        cut = count // 2
        if cut:
            first = attention.compiled(session, [(run, start, cut)])[0]
            second = attention.step(session, [(run, start + cut, count - cut)])[0]
            assert torch.equal(torch.cat([first, second]), together[run]), "other bits in two chunks"


def read_once(attention: Attention) -> int:
    """Positions that one row of each run has to read: a whole block on the same pages once for all."""
    case, total = attention.case, 0
    for block in range(max(attention.ends) // 128 + 1):
        least, readers = -(-(block + 1) * 128 // case.page_size), {}
        for run, end in enumerate(attention.ends):
            if end > block * 128:
                pages = tuple(attention.pages[run][:least])
                key = pages if len(pages) == least else run
                readers[key] = max(readers.get(key, 0), min(end - block * 128, 128))
        total += sum(readers.values())
    return total * case.kv_heads


@given(
    case=st.builds(
        replace,
        cases,
        runs=st.lists(st.tuples(st.integers(0, 700), st.just(1)), min_size=1, max_size=12),
        shared=st.sampled_from([0, 128, 200, 256, 500]),
        window=st.none(),
    ),
    name=st.sampled_from(SETS),
    threads=st.sampled_from([1, 2, 5]),
)
@settings(max_examples=size(40, 1000), deadline=None)
def test_what_rows_share_is_read_once_whatever_the_threads(sessions, case, name, threads) -> None:
    session, attention = sessions[name, threads], Attention(case)
    whole = [(run, start, 1) for run, (start, _) in enumerate(case.runs)]
    together = attention.compiled(session, whole)
    before = session.positions_read
    attention.step(session, whole)
    assert session.positions_read - before == read_once(attention)
    alone = native.Session(threads, name, share=False)
    apart = attention.step(alone, whole)
    assert alone.positions_read == sum(attention.ends) * case.kv_heads
    assert all(torch.equal(one, other) for one, other in zip(apart, together)), "other bits without sharing"


def test_threads_survive_a_fork_and_calls_from_other_threads(sessions) -> None:
    import multiprocessing
    from concurrent.futures import ThreadPoolExecutor

    session = sessions["", 2]
    x, weight = torch.randn(9, 30), torch.randn(50, 30)
    matrix, room = pack(session, weight)
    wanted = product(session, x, matrix, torch.float32)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: product(session, x, matrix, torch.float32), range(50)):
            assert torch.equal(found, wanted)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=lambda: product(session, x, matrix, torch.float32))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert torch.equal(product(session, x, matrix, torch.float32), wanted)
    assert room is not None
