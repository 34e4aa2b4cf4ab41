"""The prefix index against a plain list of what was published, under random use and eviction."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.memory.ledger import Ledger
from shoal.memory.prefix import ROOT, PrefixIndex
from shoal.memory.retention.lru import LRU

SIZE = 2
PAGES = 12


class Plain:
    """Published contents as whole token tuples; lookup is a linear search."""

    def __init__(self):
        self.contents = {}

    def match(self, ids):
        found = []
        for end in range(SIZE, len(ids) + 1, SIZE):
            page = self.contents.get(tuple(ids[:end]))
            if page is None:
                break
            found.append(page)
        return found


def tokens(ids):
    return np.array(ids, dtype=np.int32).tobytes()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=10), max_size=40), st.randoms())
def test_matches_and_evicts_like_a_plain_list(prompts, random):
    ledger = Ledger(PAGES)
    index = PrefixIndex(ledger, SIZE, LRU())
    plain = Plain()
    holders = []
    for now, ids in enumerate(prompts):
        found = index.match(ROOT, np.array(ids, dtype=np.int32))
        assert found == plain.match(ids)
        if found:
            index.use(np.array(found, dtype=np.int32), now)
        pages = list(found)
        for start in range(SIZE * len(found), len(ids) - SIZE + 1, SIZE):
            if ledger.free == 0:
                if ledger.cached == 0:
                    break
                before = {page: content for content, page in plain.contents.items()}
                index.evict(1)
                (gone,) = [p for p in before if not ledger.listed[p]]
                children = [c for c in plain.contents if c[: len(before[gone])] == before[gone]]
                assert children == [before[gone]], "a page leaves after its children"
                del plain.contents[before[gone]]
            (page,) = ledger.take(1).tolist()
            parent = pages[-1] if pages else ROOT
            assert index.publish(parent, tokens(ids[start : start + SIZE]), page, now)
            plain.contents[tuple(ids[: start + SIZE])] = page
            pages.append(page)
        holders.append(pages)
        index.check()
        ledger.check()
        while holders and random.random() < 0.6:
            pages = holders.pop(random.randrange(len(holders)))
            idle = ledger.drop(np.array(pages, dtype=np.int32))
            if len(idle):
                index.idle(idle, now)
            index.check()
            ledger.check()


def test_content_listed_already_is_not_listed_twice():
    ledger = Ledger(4)
    index = PrefixIndex(ledger, SIZE, LRU())
    first, second = ledger.take(2).tolist()
    assert index.publish(ROOT, tokens([1, 2]), first, 0.0)
    assert not index.publish(ROOT, tokens([1, 2]), second, 0.0)
    assert index.match(ROOT, np.array([1, 2], dtype=np.int32)) == [first]


def test_least_recently_used_goes_first_and_deepest_on_ties():
    ledger = Ledger(4)
    index = PrefixIndex(ledger, SIZE, LRU())
    chain = ledger.take(2)
    index.publish(ROOT, tokens([1, 2]), int(chain[0]), 0.0)
    index.publish(int(chain[0]), tokens([3, 4]), int(chain[1]), 0.0)
    other = ledger.take(1)
    index.publish(ROOT, tokens([5, 6]), int(other[0]), 0.0)
    index.idle(ledger.drop(other), 1.0)
    index.idle(ledger.drop(chain), 2.0)
    for gone in (other[0], chain[1], chain[0]):
        index.evict(1)
        assert not ledger.listed[gone]
        index.check()
