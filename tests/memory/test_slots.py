"""Places in use are made to lie side by side by the fewest moves; nothing else is touched."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.memory.slots import SlotMemory, compaction
from tests.engine.harness import drain, expected, null_engine, request
from tests.sizes import size


def fewest(occupied: np.ndarray) -> tuple[int, int]:
    """(moves, lowest window) by looking at every window: rows outside have to move."""
    count = int(occupied.sum())
    cost = [count - int(occupied[lo : lo + count].sum()) for lo in range(len(occupied) - count + 1)]
    return min(cost), cost.index(min(cost))


@given(st.lists(st.booleans(), min_size=1, max_size=12))
@settings(max_examples=size(300, 4000), deadline=None)
def test_compaction_equals_brute_force(pattern):
    occupied = np.array(pattern)
    lo, moves = compaction(occupied)
    count = int(occupied.sum())
    if not count:
        assert len(moves) == 0
        return
    assert (len(moves), lo) == fewest(occupied)
    source, target = moves.T
    assert np.all(np.diff(source) > 0)
    assert np.all(np.diff(target) > 0)
    assert not set(source.tolist()) & set(target.tolist())
    rows = np.arange(len(occupied))
    after = rows.copy()
    after[target] = rows[source]
    window = slice(lo, lo + count)
    assert sorted(after[window].tolist()) == np.flatnonzero(occupied).tolist(), "the same active set"
    untouched = np.setdiff1d(rows, target)
    assert np.array_equal(after[untouched], rows[untouched])


def test_every_small_pattern_is_compacted_with_as_few_moves_as_any_choice_needs():
    """The definition itself: no set of fewer moves makes the active set contiguous."""
    for width in range(1, 8):
        for bits in range(1 << width):
            occupied = np.array([bits >> i & 1 for i in range(width)], dtype=bool)
            used = set(np.flatnonzero(occupied).tolist())
            _, moves = compaction(occupied)
            windows = [set(range(lo, lo + len(used))) for lo in range(width - len(used) + 1)]
            for fewer in range(len(moves)):
                for staying in combinations(used, len(used) - fewer):
                    assert not any(set(staying) <= window for window in windows)


def slots_engine(**changes):
    kind = {"layout": "slots", "pages": 6, "max_length": 24, "max_running": 8, "vocabulary": 997} | changes
    return null_engine(**kind)


def spans(engine):
    """(span, sequences that hold a place) when each step is planned, and its moves."""
    found, schedule = [], engine.scheduler.schedule

    def watched(now):
        plans = schedule(now)
        for plan in plans:
            found.append((engine.memory.span, engine.memory.ledger.held, plan.moves))
        return plans

    engine.scheduler.schedule = watched
    return found


def mixed(count, seed):
    rng = np.random.default_rng(seed)
    for i in range(count):
        prompt = rng.integers(1, 997, rng.integers(1, 12))
        yield request(f"r{i}", prompt, max_tokens=int(rng.integers(1, 12)), ignore_eos=True)


@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 40), st.integers(0, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=size(50, 1000), deadline=None)
def test_whoever_computes_lies_side_by_side(places, most, rows, chunk, seed):
    admission = f"sarathi-serve:rows={rows},chunk={chunk}"
    engine = slots_engine(pages=places, max_running=most, admission=admission)
    found = spans(engine)
    items = list(mixed(9, seed))
    handles = [engine.add(item, 0.0) for item in items]
    for step in range(3):
        engine.step(float(step))
    gone = engine.abort(handles[seed % 9], 3.0)
    answers = drain(engine)
    for item in items[: seed % 9] + items[seed % 9 + gone :]:
        assert item.id not in answers or answers[item.id].tokens.tolist() == expected(engine, item)
    assert all(span == held for span, held, _ in found)
    assert engine.scheduler.counters.preemptions == 0
    assert engine.memory.available == places


def test_a_move_copies_computed_tokens_only():
    engine = slots_engine()
    for i, length in enumerate([2, 9, 3, 9, 4, 9]):
        engine.add(request(f"r{i}", [1, 2, i], max_tokens=length, ignore_eos=True), 0.0)
    found = spans(engine)
    drain(engine)
    moves = np.concatenate([moves for _, _, moves in found])
    assert len(moves) == engine.memory.moved > 0
    assert np.all(moves[:, 2] > 3)
    assert np.all(moves[:, 2] < 12)


def test_without_compaction_only_ends_shrink():
    engine = slots_engine(compact=False)
    for i, length in enumerate([9, 3, 3, 9, 6, 5]):
        engine.add(request(f"r{i}", [1, i], max_tokens=length, ignore_eos=True), 0.0)
    found = spans(engine)
    answers = drain(engine)
    assert engine.memory.moved == 0
    assert [span for span, _, _ in found] == [6] * 3 + [6] * 2 + [5] + [4] * 3
    assert [held for _, held, _ in found] == [6] * 3 + [4] * 2 + [3] + [2] * 3
    assert len(answers) == 6


def test_newcomers_fill_holes_first_then_join_at_an_end():
    engine = slots_engine(max_running=6)
    memory = engine.memory
    for name, length in [("a", 9), ("b", 1), ("c", 9)]:
        engine.add(request(name, [1, 2], max_tokens=length, ignore_eos=True), 0.0)
    engine.step(0.0)
    engine.add(request("d", [1, 2], max_tokens=9, ignore_eos=True), 1.0)
    engine.add(request("e", [1, 2], max_tokens=9, ignore_eos=True), 1.0)
    engine.step(1.0)
    assert (memory.lo, memory.hi, memory.moved) == (0, 4, 0)
    engine.check()


def test_copies_of_a_step_that_failed_are_said_again():
    """A step broken off midway may not have made them; its sequences end, the others go on."""
    engine = slots_engine(admission="sarathi-serve:rows=64", max_running=6)
    submit, broken = engine.executor.submit, []

    def breaks(plan):
        if len(plan.moves) and not broken:
            broken.append(plan.moves)
            raise KeyboardInterrupt
        submit(plan)

    engine.executor.submit = breaks
    items = [request(f"r{i}", [1, 2, i], max_tokens=n, ignore_eos=True) for i, n in enumerate([9, 3, 9])]
    for item in items:
        engine.add(item, 0.0)
    with pytest.raises(KeyboardInterrupt):
        drain(engine)
    late = request("late", [5, 6, 7], max_tokens=9, ignore_eos=True)
    engine.add(late, 50.0)
    found = spans(engine)
    answers = drain(engine)
    assert answers["late"].tokens.tolist() == expected(engine, late)
    assert np.array_equal(found[0][2], broken[0])
    assert len(found[1][2]) == 0


def test_a_sequence_that_waits_for_its_turn_is_moved_too():
    """Held back by the budget while its place is moved: what it has computed moves with it."""
    engine = slots_engine(admission="sarathi-serve:rows=5,chunk=2", max_running=6)
    items = list(mixed(12, 3))
    for item in items:
        engine.add(item, 0.0)
    answers = drain(engine)
    assert engine.memory.moved > 0
    assert all(answers[item.id].tokens.tolist() == expected(engine, item) for item in items)


@given(st.data())
@settings(max_examples=size(100, 1000), deadline=None)
def test_books_of_places(data):
    """Sequences come and go in any order; the map of places stays one to one, the window right."""
    engine = slots_engine(pages=data.draw(st.integers(1, 12)), compact=data.draw(st.booleans()))
    memory: SlotMemory = engine.memory
    slots: list[int] = []
    for name in range(data.draw(st.integers(1, 30))):
        action = data.draw(st.sampled_from(["enter", "leave", "plan"]))
        if action == "enter" and memory.available:
            slot = engine.table.add(request(str(name), [1, 2]), limit=9, stop_ids=(), now=0.0)
            memory.open(slot)
            one = np.array([slot], dtype=np.int32)
            memory.grow(one, memory.missing(one, one + 1)[1])
            engine.table.state[slot] = 2
            slots.append(slot)
        elif action == "leave" and slots:
            slot = slots.pop(data.draw(st.integers(0, len(slots) - 1)))
            memory.release(slot, 0.0)
            engine.table.remove(slot)
        elif action == "plan":
            memory.moves()
            assert not memory.compact or memory.span == len(slots)
        memory.check()
        assert memory.span >= len(slots)
