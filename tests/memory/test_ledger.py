"""Free + cached + held = total, whatever is done in whatever order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.memory.ledger import Ledger


class Books(RuleBasedStateMachine):
    """The ledger beside a dictionary of counts."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger(8)
        self.count = {}
        self.listed = set()

    @precondition(lambda self: self.ledger.free)
    @rule(data=st.data())
    def take(self, data):
        n = data.draw(st.integers(1, self.ledger.free))
        for page in self.ledger.take(n).tolist():
            assert page not in self.count
            assert page not in self.listed
            self.count[page] = 1

    @precondition(lambda self: self.listed)
    @rule(data=st.data())
    def hold(self, data):
        page = data.draw(st.sampled_from(sorted(self.listed)))
        self.ledger.hold(np.array([page], dtype=np.int32))
        self.count[page] = self.count.get(page, 0) + 1

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def drop(self, data):
        page = data.draw(st.sampled_from(sorted(self.count)))
        idle = self.ledger.drop(np.array([page], dtype=np.int32)).tolist()
        self.count[page] -= 1
        if self.count[page] == 0:
            del self.count[page]
        assert idle == ([page] if page in self.listed and page not in self.count else [])

    @precondition(lambda self: set(self.count) - self.listed)
    @rule(data=st.data())
    def list_page(self, data):
        page = data.draw(st.sampled_from(sorted(set(self.count) - self.listed)))
        self.ledger.list_page(page)
        self.listed.add(page)

    @precondition(lambda self: self.listed)
    @rule(data=st.data())
    def unlist(self, data):
        page = data.draw(st.sampled_from(sorted(self.listed)))
        self.ledger.unlist(page)
        self.listed.remove(page)

    @invariant()
    def balances(self):
        self.ledger.check()
        assert self.ledger.held == len(self.count)
        assert self.ledger.cached == len(self.listed - set(self.count))
        assert self.ledger.free + self.ledger.cached + self.ledger.held == 8


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_corrupted_ledger_is_noticed():
    ledger = Ledger(4)
    pages = ledger.take(2)
    ledger.count[pages[0]] = 0
    with pytest.raises(AssertionError):
        ledger.check()
