"""Columns grow, slots are used again, token ids survive growth."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.request import Request, SamplingParams
from shoal.core.table import SequenceTable


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 300)), min_size=1, max_size=90), st.randoms())
def test_ids_are_what_was_put_in(sequences, random):
    table = SequenceTable()
    known = {}
    for length, more in sequences:
        prompt = np.array([random.randrange(1000) for _ in range(length)], dtype=np.int32)
        request = Request(id="", prompt=prompt, params=SamplingParams())
        slot = table.add(request, limit=length + 301, stop_ids=(1, 2, 3)[: more % 4], now=0.0)
        assert slot not in known
        known[slot] = prompt.tolist()
        table.check()
        for _ in range(min(more, 40)):
            slots = np.array(sorted(known), dtype=np.int32)
            slots = slots[table.known[slots] < table.limit[slots]]
            tokens = np.array([random.randrange(1000) for _ in slots], dtype=np.int32)
            now = table.append(slots, table.known[slots], table.base[slots], table.room[slots], tokens)
            for s, t in zip(slots.tolist(), tokens.tolist()):
                known[s].append(t)
            assert now.tolist() == [len(known[s]) for s in slots.tolist()]
        while known and random.random() < 0.4:
            gone = random.choice(sorted(known))
            assert table.ids(gone).tolist() == known.pop(gone)
            table.remove(gone)
    for slot, ids in known.items():
        assert table.ids(slot).tolist() == ids
        assert table.slot_of(int(table.handle[slot])) == slot
    assert len(table) == len(known)
