"""Trees of sequences: which pages they share, and what is read of them, by listing every token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.experiments.prefixes import BLOCK, Tree, in_turn, plan


@st.composite
def trees(draw):
    counts = [draw(st.integers(1, 3))]
    for _ in range(draw(st.integers(1, 2))):
        counts.append(counts[-1] * draw(st.integers(1, 3)))
    return Tree(tuple(tuple(draw(st.integers(1, 300)) for _ in range(count)) for count in counts))


def tokens(tree: Tree, sequence: int) -> list[tuple[int, int, int]]:
    """(level, node, index) of each token."""
    nodes = tree.nodes(sequence)
    return [(level, node, i) for level, node in enumerate(nodes) for i in range(tree.levels[level][node])]


@given(trees(), st.integers(0, 2), st.sampled_from([1, 16, 48, 128]))
@settings(max_examples=60, deadline=None)
def test_pages_hold_the_same_tokens_and_are_shared_wherever_they_can_be(tree, shared, size):
    shared = min(shared, len(tree.levels) - 1)
    pages, count = tree.pages(size, shared)
    content: dict[int, object] = {}
    for sequence, ids in enumerate(pages):
        held = tokens(tree, sequence)
        assert len(held) == tree.length(sequence)
        assert len(ids) == -(-len(held) // size)
        for page, at in zip(ids.tolist(), range(0, len(held), size)):
            part = tuple(held[at : at + size])
            common = len(part) == size and all(level < shared for level, *_ in part)
            content.setdefault(page, part if common else (part, sequence))
            assert content[page] == (part if common else (part, sequence))
    assert len(content) == count == len(set(content.values()))


@given(trees(), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_reads_are_whole_shared_blocks_once_and_everything_else(tree, shared):
    shared = min(shared, len(tree.levels) - 1)
    nodes, own = set(), 0
    for sequence in range(tree.count):
        held = tokens(tree, sequence)
        for at in range(0, len(held), BLOCK):
            part = tuple(held[at : at + BLOCK])
            if len(part) == BLOCK and all(level < shared for level, *_ in part):
                nodes.add(part)
            else:
                own += len(part)
    assert tree.reads(shared) == (BLOCK * len(nodes), own)


def test_a_plan_of_these_runs_agrees_with_itself():
    tree = Tree(((20,), (3, 5)))
    pages, _ = tree.pages(4, 1)
    found = plan(pages, [(1, 4, 7), (0, 22, 1)])
    found.check(4)
    assert found.position.tolist() == [4, 5, 6, 7, 8, 9, 10, 22]
    assert found.pages.tolist() == [*pages[1], *pages[0]]


def test_contestants_take_turns(monkeypatch):
    order, now = [], [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def contestant(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds

        return call

    found = in_turn({"a": contestant("a", 1.0), "b": contestant("b", 0.001)}, 2)
    assert found == pytest.approx({"a": 1.0, "b": 0.001})
    # Two calls of each to begin with; then a once and b twice a round, the second round backwards.
    assert "".join(order) == "aabb" + "abb" + "bba"
    assert np.isfinite(list(found.values())).all()
