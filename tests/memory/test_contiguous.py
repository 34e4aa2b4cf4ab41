"""Places against a shadow of them: what plans have mapped is what each sequence's table says, always."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.plan import UNMAP
from shoal.core.policies import make
from shoal.core.table import RUNNING, SequenceTable
from shoal.memory.contiguous import ContiguousMemory
from tests.engine.harness import drain, expected, null_engine, request
from tests.sizes import size

PAGE, LENGTH, PLACES = 2, 12, 4


class Shadow:
    """Random sequences that grow, share and go, and what the plans so far have mapped."""

    def __init__(self, pages: int, seed: int, **how: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.table = SequenceTable()
        retention = make("retention", "lru")
        self.memory = ContiguousMemory(
            self.table, pages, PAGE, retention, places=PLACES, length=LENGTH, **how
        )
        self.mapped = np.full((PLACES, LENGTH // PAGE), UNMAP)
        self.slots: list[int] = []
        self.steps = 0

    def come(self) -> None:
        if len(self.slots) == PLACES:
            return
        prompt = self.rng.integers(0, 2, self.rng.integers(1, LENGTH))
        slot = self.table.add(request(f"r{self.steps}", prompt), limit=LENGTH, stop_ids=(), now=0.0)
        self.memory.open(slot)
        self.memory.adopt(slot, self.memory.find(slot), 0.0)
        if not self.grow(slot):
            self.leave(slot)
            return
        self.table.state[slot] = RUNNING
        self.slots.append(slot)

    def grow(self, slot: int) -> bool:
        """Room for all known tokens, if there is as much."""
        one = np.array([slot], dtype=np.int32)
        who, missing = self.memory.missing(one, self.table.known[one])
        if missing.sum() > self.memory.available:
            return False
        if len(who):
            self.memory.grow(one[who], missing)
        if self.table.known[slot] >= self.table.border[slot]:
            self.memory.publish(slot, int(self.table.known[slot]), 0.0)
        return True

    def leave(self, slot: int) -> None:
        self.memory.release(slot, 0.0)
        self.table.remove(slot)

    def step(self, fails: bool) -> None:
        """A step computes what is known; each run then knows one token more."""
        self.steps += 1
        slots = np.array(self.slots, dtype=np.int32)
        if not len(slots):
            return
        end = self.table.known[slots]
        place, maps, ahead = self.memory.mapping(slots, end)
        for at, index, page in [*maps.tolist(), *([] if fails else ahead.tolist())]:
            self.mapped[at, index] = page
        for slot, at, tokens in zip(slots, place, end):
            count = self.table.pages[slot]
            assert tokens <= count * PAGE
            assert np.array_equal(self.mapped[at, :count], self.memory.page_table[slot, :count])
        if fails:
            self.memory.retract()
            return
        self.memory.confirm()
        assert np.array_equal(self.mapped, self.memory.mapped)
        self.table.computed[slots] = end

    def ask_for_more(self) -> None:
        """Running sequences know one token more; who finds no room for it goes."""
        for slot in list(self.slots):
            known = int(self.table.known[slot])
            if known < LENGTH - 1:
                one = np.array([slot], dtype=np.int32)
                self.table.append(
                    one,
                    np.array([known], np.int32),
                    self.table.base[one],
                    self.table.room[one],
                    self.rng.integers(0, 2, 1).astype(np.int32),
                )
            if not self.grow(slot):
                self.slots.remove(slot)
                self.leave(slot)


actions = st.lists(st.sampled_from(["come", "leave", "step", "fail"]), max_size=40)


@given(actions, st.integers(6, 20), st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
@settings(max_examples=size(150, 4000), deadline=None)
def test_plans_map_what_tables_say(history, pages, seed, eager, deferred):
    shadow = Shadow(pages, seed, eager=eager, deferred=deferred)
    for action in history:
        if action == "come":
            shadow.come()
        elif action == "leave" and shadow.slots:
            shadow.leave(shadow.slots.pop(shadow.rng.integers(len(shadow.slots))))
        elif action in ("step", "fail"):
            shadow.step(action == "fail")
            shadow.ask_for_more()
        shadow.memory.check()
        memory = shadow.memory
        shown = memory.mapped[memory.mapped != UNMAP]
        assert memory.resident == len(set(shown.tolist())) <= pages
        if not (eager or deferred):
            assert memory.resident == memory.ledger.held, "nothing but what somebody holds"
    while shadow.slots:
        shadow.leave(shadow.slots.pop())
    shadow.memory.reclaim()
    assert shadow.memory.resident == 0
    assert np.all(shadow.memory.mapped == UNMAP)


def run(engine, *prompts, tokens=4):
    """Answer these prompts together; the answers are right."""
    items = [
        request(f"{engine.scheduler.counters.steps}-{i}", p, tokens, ignore_eos=True)
        for i, p in enumerate(prompts)
    ]
    for item in items:
        engine.add(item, 0.0)
    answers = drain(engine)
    assert all(answers[item.id].tokens.tolist() == expected(engine, item) for item in items)


def contiguous(**changes):
    kind = {"layout": "contiguous", "pages": 40, "max_length": 40, "reuse": False, "vocabulary": 997}
    return null_engine(admission="sarathi-serve:rows=64", **(kind | changes))


def test_who_comes_next_starts_on_the_pages_that_are_mapped_already():
    engine = contiguous(max_running=2)
    run(engine, range(1, 20), range(30, 40))
    before = engine.memory.now, engine.memory.ahead
    for _ in range(3):
        run(engine, range(2, 21), range(31, 41))
    assert (engine.memory.now, engine.memory.ahead) == before
    lean = contiguous(max_running=2, deferred=False)
    run(lean, range(1, 20))
    assert lean.memory.resident == 0


def test_a_newcomer_takes_the_place_that_fits_best_not_the_first_or_the_largest():
    engine = contiguous(max_running=3, eager=False)
    run(engine, range(1, 5), range(1, 30), range(1, 15), tokens=2)
    pages = np.count_nonzero(engine.memory.mapped != UNMAP, axis=1).tolist()
    engine.add(request("next", range(1, 13), 2, ignore_eos=True), 0.0)
    plan = engine.scheduler.schedule(0.0)[0]
    assert pages == [2, 8, 4]
    assert plan.place.tolist() == [2]
    assert len(plan.maps) == 0


def test_what_the_next_token_needs_is_mapped_beside_the_step_before():
    engine, lazy = contiguous(max_running=3), contiguous(max_running=3, eager=False)
    for each in (engine, lazy):
        run(each, range(1, 9), range(1, 4), range(1, 14), tokens=20)
    assert engine.memory.now == sum(-(-n // 4) for n in (8, 3, 13)), "only prompts wait for their pages"
    assert lazy.memory.ahead == 0
    assert lazy.memory.now == engine.memory.now + engine.memory.ahead


def test_a_shared_page_is_mapped_in_every_place_that_reads_it():
    engine = contiguous(max_running=3, reuse=True)
    for name in "abc":
        engine.add(request(name, [*range(1, 13), ord(name)], 3, ignore_eos=True), 0.0)
    engine.step(0.0)
    engine.check()
    shared = engine.memory.mapped[:, :3]
    assert np.all(shared == shared[0])
    assert len(np.unique(engine.memory.mapped[:, 3])) == 3
