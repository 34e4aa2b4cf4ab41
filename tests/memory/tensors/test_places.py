"""Pages mapped into places against a model of them in plain arrays, and against the system's own books."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import OperatorError
from shoal.core.plan import UNMAP
from shoal.memory.tensors import host
from shoal.memory.tensors.host import GRAIN, HostMemory
from shoal.memory.tensors.places import Places
from tests.sizes import size

PAGES, PLACES, DEPTH = 5, 3, 4


def moves(*rows):
    return np.array(rows, dtype=np.int32).reshape(-1, 3)


def mappings(places: Places) -> tuple[int, int]:
    """(mappings of pages into places, resident bytes in them), as the system counts."""
    begin = places.room.data_ptr() + places.pages * places.page_bytes
    end = places.room.data_ptr() + places.room.nbytes
    found = resident = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)", line):
            low, high = int(head[1], 16), int(head[2], 16)
            inside = begin <= low and high <= end and "shoal-kv" in head[3]
            found += inside * (high - low) // places.page_bytes
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1]) << 10
    return found, resident


steps = st.lists(
    st.tuples(st.integers(0, PLACES - 1), st.integers(0, DEPTH - 1), st.integers(UNMAP, PAGES - 1)),
    max_size=12,
)


@given(st.lists(st.tuples(st.booleans(), steps), max_size=8), st.integers(1, 3))
@settings(max_examples=size(60, 1000), deadline=None)
def test_a_place_shows_the_pages_that_are_mapped_there(history, grains):
    places = Places(PAGES, grains * GRAIN, PLACES, DEPTH)
    for page in range(PAGES):
        places.room[page] = 1 + page
    shown = np.full((PLACES, DEPTH), UNMAP)
    for beside, maps in history:
        if beside:
            places.map(moves())
            places.begin(moves(*maps))
        else:
            places.map(moves(*maps))
        for place, index, page in maps:
            shown[place, index] = page
    places.map(moves())
    assert np.array_equal(places.mapped, shown)
    seen = places.room[PAGES:].view(PLACES, DEPTH, -1)
    assert np.array_equal(seen[:, :, 0].numpy(), 1 + shown)
    assert torch.equal(seen.amin(2), seen.amax(2))
    count = np.count_nonzero(shown != UNMAP)
    assert mappings(places) == (count, count * grains * GRAIN)
    assert places.memory.resident == PAGES * grains * GRAIN
    places.map(moves(*((p, i, UNMAP) for p in range(PLACES) for i in range(DEPTH))))
    assert mappings(places) == (0, 0)


def test_what_is_written_in_one_place_is_read_in_another_and_memory_is_given_as_it_is_mapped():
    places = Places(PAGES, GRAIN, PLACES, DEPTH)
    assert places.memory.resident == 0
    places.map(moves((0, 0, 3), (2, 1, 3)))
    assert places.memory.resident == GRAIN
    places.room[PAGES + 2 * DEPTH + 1, 7] = 99
    assert places.room[PAGES, 7] == 99 == places.room[3, 7]
    assert places.room[PAGES + DEPTH :].count_nonzero() == 1
    assert places.covers(*(np.array(x) for x in ([0], [0], [1], [3])))
    assert not places.covers(*(np.array(x) for x in ([0], [0], [2], [3, 3])))


def test_maps_that_the_system_refuses_can_be_asked_for_again(monkeypatch):
    places = Places(PAGES, GRAIN, PLACES, DEPTH)
    good = HostMemory.map

    def refuse(self, *arguments):
        raise OperatorError("no more mappings")

    monkeypatch.setattr(HostMemory, "map", refuse)
    places.begin(moves((1, 0, 2)))
    with pytest.raises(OperatorError, match="no more mappings"):
        places.map(moves((1, 1, 4)))
    monkeypatch.setattr(HostMemory, "map", good)
    places.map(moves((1, 1, 4)))
    assert places.mapped[1].tolist() == [2, 4, UNMAP, UNMAP]


def test_a_range_that_the_system_does_not_give_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(host, "_FAILED", 0)
    monkeypatch.setattr(host, "_call", lambda *_: lambda *_: 0)
    with pytest.raises(OperatorError, match=r"cannot be mapped.*--page-size"):
        HostMemory(GRAIN, GRAIN)
