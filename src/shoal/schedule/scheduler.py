"""The scheduler: which rows the next step computes, and what its result means for every sequence.

It knows no phases. Each sequence has ``known - computed`` rows to do; a step gives some of them to each.
Policies answer who is next, how much, and who yields; budgets, queues and pages are changed here alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from shoal.core.errors import CallerError, InternalError
from shoal.core.events import Admitted, Arrived, Ended, Event, Preempted, StepDone
from shoal.core.plan import EMIT_LOGPROBS, EMIT_TOKEN, I32, I64, StepPlan, StepResult
from shoal.core.policy import Admission, Budget, Load, Order, Policy, Victim
from shoal.core.request import FinishReason, Request
from shoal.core.table import RUNNING, WAITING, SequenceTable
from shoal.memory.layout import Layout
from shoal.schedule import views
from shoal.schedule.flight import Flight, Lineup, ends, take_off
from shoal.schedule.waiting import WaitingLine, sort_running

PATIENCE = 16
"""A sequence that did not fit may be passed by this many newcomers; then nobody passes it."""
LOOK_AHEAD = 8
"""How many waiting sequences that do not fit are passed over in one step."""


@dataclass(slots=True)
class Counters:
    """Totals since the start, in tokens unless said otherwise. generated: of the computed ones, those that
    came after a prompt; those computed again after a preemption count again."""

    steps: int = 0
    computed: int = 0
    generated: int = 0
    emitted: int = 0
    cached: int = 0
    preemptions: int = 0
    lost: int = 0


@dataclass(slots=True)
class Gauges:
    """How things stood while the latest step ran: sequences running and waiting, pages held by the running
    ones, pages kept by the cache alone."""

    running: int = 0
    waiting: int = 0
    held: int = 0
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Update:
    """What one result changed: ``tokens`` new ids for ``slots``, and the sequences that ended
    (slot, reason, the id that ended it) or failed."""

    plan: StepPlan
    slots: I32
    tokens: I32
    ended: list[tuple[int, FinishReason, int | None]]
    failed: list[tuple[int, Exception]]


class Scheduler:
    """Mechanism around four policies.

    Args:
        table: the engine's sequences, shared with ``memory`` and the engine.
        max_running: most sequences that compute side by side.
        max_length: longest sequence; its pages must fit the pool alone.
    """

    def __init__(
        self,
        table: SequenceTable,
        memory: Layout,
        order: Order,
        admission: Admission,
        victim: Victim,
        *,
        max_running: int,
        max_length: int,
    ) -> None:
        if memory.pages_for(max_length) > memory.ledger.total:
            raise InternalError("the longest sequence does not fit the page pool")
        self.table = table
        self.memory = memory
        self.order = order
        self.admission = admission
        self.victim = victim
        self.max_running = max_running
        self.max_length = max_length
        self.counters = Counters()
        self.gauges = Gauges()
        self.running: I32 = np.zeros(0, dtype=np.int32)
        self.line = WaitingLine(table)
        self._flight: Flight | None = None
        self._lineup: Lineup | None = None
        self._starting = False
        self._asks_entry = type(admission).enters is not Admission.enters
        policies: tuple[Policy, ...] = (order, admission, victim, *memory.policies)
        # One system may stand behind several seams.
        distinct = {id(policy): policy for policy in policies}.values()
        self._observers = [p for p in distinct if type(p).observe is not Policy.observe]

    @property
    def waiting(self) -> int:
        return self.line.count

    def add(self, request: Request, now: float) -> int:
        """Queue a request; returns its slot.

        Raises:
            CallerError: empty prompt, or no room for even one more token.
        """
        length, params = len(request.prompt), request.params
        if length == 0:
            raise CallerError("the prompt is empty", remedy="give at least one token")
        if length >= self.max_length:
            raise CallerError(
                f"the prompt has {length} tokens, the longest sequence is {self.max_length}",
                remedy="shorten the prompt or raise --max-model-len or --kv-memory",
            )
        most = self.max_length if params.max_tokens is None else length + params.max_tokens
        ends = () if params.ignore_eos else request.end_ids
        table = self.table
        slot = table.add(
            request, limit=min(most, self.max_length), stop_ids=(*ends, *params.stop_token_ids), now=now
        )
        self.memory.open(slot)
        table.emit[slot] = EMIT_TOKEN if params.logprobs is None else EMIT_LOGPROBS
        table.scores_prompt[slot] = params.prompt_logprobs is not None
        self.line.add(slot)
        if self._observers:
            self._tell(Arrived(int(table.handle[slot]), now, length))
        return slot

    def schedule(self, now: float) -> list[StepPlan]:
        """The plans of this step; none when there is nothing to do or a step is in flight."""
        if self._flight is not None or (not len(self.running) and not self.waiting):
            return []
        self._rank(now)
        start = self.table.computed[self.running]
        todo = self.table.known[self.running] - start
        load = views.load(self.memory, todo, self.waiting, now)
        asked = self.admission.budget(load)
        budget = Budget(max(1, asked.rows), max(0, asked.singles), max(1, asked.chunk))
        even = not load.backlog and load.singles <= min(budget.singles, budget.rows)
        if even:
            rows = np.ones(len(todo), dtype=np.int32)
        else:
            rows = self._share(todo, budget, now)
            start = self.table.computed[self.running]
        slots, rows, yielded = self._make_room(start, rows, even, now)
        if self.waiting and not yielded:
            slots, rows = self._admit(slots, rows, budget, load, now)
        if not len(slots) and len(self.running):
            # Held back in favour of newcomers that do not fit.
            todo = self.table.known[self.running] - self.table.computed[self.running]
            rows = self._share(todo, Budget(max(budget.rows, len(todo)), len(todo), budget.chunk), now)
            slots, rows, _ = self._make_room(self.table.computed[self.running], rows, False, now)
        if not len(slots):
            raise InternalError(
                f"nothing can run: {len(self.running)} running, {self.waiting} waiting, "
                f"{self.memory.available} pages available",
                remedy="report this with the job",
            )
        self.counters.steps += 1
        even &= slots is self.running
        lineup = self._line_up(slots)
        self._flight = take_off(self.table, self.memory, lineup, rows, self.counters.steps, even)
        return [self._flight.plan]

    def update(self, result: StepResult, now: float) -> Update:
        """Take a result in: lengths advance, new ids are known, ends are seen. Ended sequences stay in
        the table until ``finish`` is called for each."""
        flight = self._flight
        assert flight is not None, "a result without a plan"
        assert result.step == flight.plan.step, "a result of another plan"
        self._flight = None
        self._read_gauges()
        table = self.table
        failed = [(int(flight.lineup.slots[run]), error) for run, error in result.failures.items()]
        computed = flight.plan.row_count
        if failed:
            # What these runs were to write cannot be trusted.
            for slot, _ in failed:
                table.dropped[slot] += table.computed[slot]
                self.memory.release(slot, result.ready)
            self.memory.retract()
            flight = flight.without(table, list(result.failures))
            computed -= int(flight.plan.rows[list(result.failures)].sum())
        else:
            self.memory.confirm()
        told = np.maximum(table.computed[flight.lineup.slots], flight.lineup.prompt)
        self.counters.generated += int(np.maximum(flight.end - told, 0).sum())
        table.computed[flight.lineup.slots] = flight.end
        lineup, before, tokens, complete = flight.chosen(table, result)
        if self._starting:
            table.first_token[lineup.slots[before == lineup.prompt]] = result.ready
            self._starting = not table.first_token[self.running].all()
        known = table.append(lineup.slots, before, lineup.base, lineup.room, tokens)
        self.counters.computed += computed
        self.counters.emitted += len(tokens)
        if self._observers:
            self._tell(StepDone(result.step, now, computed, len(flight.end)))
        ended = ends(table, lineup, tokens, known, complete)
        return Update(flight.plan, lineup.slots, tokens, ended, failed)

    def _read_gauges(self) -> None:
        gauges, ledger = self.gauges, self.memory.ledger
        gauges.running, gauges.waiting = len(self.running), self.waiting
        gauges.held, gauges.cached = ledger.held, ledger.cached

    def finish(self, slot: int, reason: FinishReason, now: float) -> None:
        """The sequence has its answer: it leaves queue, memory and table."""
        table = self.table
        if table.state[slot] == RUNNING:
            self.running = self.running[self.running != slot]
        else:
            self.line.leave(slot)
            self.memory.came(slot, now)
        self.memory.release(slot, now)
        if self._observers:
            output = int(table.known[slot] - table.prompt[slot])
            self._tell(Ended(int(table.handle[slot]), now, reason, output))
        table.remove(slot)

    def check(self) -> None:
        """Raise AssertionError unless table, queues and memory agree."""
        table = self.table
        table.check()
        self.memory.check()
        assert np.array_equal(np.sort(self.running), table.slots_in(RUNNING))
        self.line.check()

    # Who is next

    def _rank(self, now: float) -> None:
        """Keys for newcomers; under a dynamic order, for everybody."""
        self.line.rank(self.order, now)
        if self.order.dynamic:
            self.running = sort_running(self.table, self.running)

    # How much for those that run

    def _share(self, todo: I32, budget: Budget, now: float) -> I32:
        """Rows for each running sequence, in order: first those with one row to do, then the others."""
        single = todo == 1
        rows = single.astype(np.int32)
        singles = int(np.count_nonzero(single))
        most = budget.rows
        allowed = min(singles, budget.singles, most)
        if allowed < singles:
            rows[np.cumsum(rows) > allowed] = 0
        left = most - allowed
        for i in (~single).nonzero()[0].tolist() if singles < len(todo) else ():
            if left <= 0:
                break
            slot = int(self.running[i])
            self._adopt(slot, self.memory.find(slot), now)
            rows[i] = min(self.table.known[slot] - self.table.computed[slot], budget.chunk, left)
            left -= int(rows[i])
        return rows

    def _make_room(self, start: I32, rows: I32, full: bool, now: float) -> tuple[I32, I32, bool]:
        """(slots, rows, whether somebody had to yield); these rows have their pages.

        ``full`` says that every entry of ``rows`` is above 0.
        """
        yielded = False
        while True:
            if yielded and not rows.any():
                rows[0] = 1
            slots, end = self.running, start + rows
            who, missing = self.memory.missing(slots, end)
            if len(who) and not full:
                work = rows[who] > 0
                who, missing = who[work], missing[work]
            short = sum(missing.tolist()) - self.memory.available
            if short <= 0:
                break
            yielded, full = True, False
            can_wait = who[rows[who] > 1]
            if len(can_wait) and can_wait[-1] > 0:
                rows[can_wait[-1]] = 0
                continue
            if len(slots) == 1:
                self.memory.break_pins(short)
                continue
            rows = self._yield_one(rows, now)
            start = self.table.computed[self.running]
        self._enter_memory(slots, end, who, missing, now)
        if not full and not rows.all():
            slots, rows = slots[rows > 0], rows[rows > 0]
        return slots, rows, yielded

    def _yield_one(self, rows: I32, now: float) -> I32:
        """Preempt one sequence, never the first in order: so somebody always gets on."""
        view = views.sequences(self.table, self.running[1:], now)
        choice = self.victim.choose(view)
        if not 0 <= choice < len(view):
            raise InternalError(f"{self.victim!r} chose {choice} among {len(view)} candidates")
        slot = int(self.running[1 + choice])
        table = self.table
        lost = int(table.computed[slot])
        table.preemptions[slot] += 1
        table.dropped[slot] += lost
        table.lost[slot] += lost
        self.counters.preemptions += 1
        self.counters.lost += lost
        self.memory.give_way(slot, now)
        table.state[slot] = WAITING
        self.line.rejoin(slot)
        self.running = np.delete(self.running, 1 + choice)
        if self._observers:
            self._tell(Preempted(int(table.handle[slot]), now, lost))
        return np.delete(rows, 1 + choice)

    def _enter_memory(self, slots: I32, end: I32, who: I64, missing: I32, now: float) -> None:
        """Pages for the tokens up to ``end``; pages that they fill are listed for others at once."""
        if len(who):
            self.memory.grow(slots[who], missing)
        for i in (end >= self.table.border[slots]).nonzero()[0].tolist():
            self.memory.publish(int(slots[i]), int(end[i]), now)

    def _line_up(self, slots: I32) -> Lineup:
        """The unchanging columns of ``slots``, kept while the same sequences run."""
        kept = self._lineup
        if kept is None or kept.slots is not slots or kept.moves != self.table.tokens.moves:
            kept = Lineup.of(self.table, slots)
            if slots is self.running:
                self._lineup = kept
        return kept

    # Who enters

    def _admit(self, slots: I32, rows: I32, budget: Budget, load: Load, now: float) -> tuple[I32, I32]:
        """Let newcomers in, in order, while rows, places and pages last."""
        left = budget.rows - int(rows.sum())
        growth = views.growth(self.table, self.memory, self.running) if self._asks_entry else 0
        entered: list[int] = []
        granted: list[int] = []
        passed: list[int] = []
        while left > 0 and len(self.running) + len(entered) < self.max_running:
            slot = self.line.pop()
            if slot is None:
                break
            company = len(self.running) + len(entered)
            if self._asks_entry:
                load = replace(load, entered=len(entered), growth=growth, granted=budget.rows - left)
            hits = self._welcome(slot, load, company)
            if hits is None:
                passed.append(slot)
                break
            if self._short(slot, hits, company) > 0:
                passed.append(slot)
                if len(passed) >= LOOK_AHEAD or self.table.skipped[slot] >= PATIENCE:
                    break
                continue
            self.table.skipped[passed] += 1
            count = self._enter(slot, hits, min(left, budget.chunk), now)
            if self._asks_entry:
                growth += views.growth(self.table, self.memory, np.array([slot]))
            entered.append(slot)
            granted.append(count)
            left -= count
        self.line.put_back(passed)
        if not entered:
            return slots, rows
        new = np.array(entered, dtype=np.int32)
        self.running = sort_running(self.table, np.concatenate([self.running, new]))
        return np.concatenate([slots, new]), np.concatenate([rows, np.array(granted, dtype=np.int32)])

    def _welcome(self, slot: int, load: Load, company: int) -> list[int] | None:
        """Listed pages that a newcomer would take; None if the policy does not want it now.

        Nobody runs beside the first: it is let in unasked, and pins that keep it out are broken.
        """
        hits = self.memory.find(slot)
        if not company:
            # What it would have taken from the cache may be among the pages that go.
            while (short := self._short(slot, hits, company)) > 0:
                self.memory.break_pins(short)
                hits = self.memory.find(slot)
        elif self._asks_entry:
            at_hand = replace(
                load,
                running=company,
                waiting=self.waiting,
                free_pages=self.memory.available,
            )
            if not self.admission.enters(at_hand, views.newcomer(self.table, self.memory, slot, hits)):
                return None
        return hits

    def _short(self, slot: int, hits: list[int], company: int) -> int:
        """Pages that lack for all its known tokens and what those running will soon want; 0 or less if it
        fits."""
        need = self.memory.pages_for(int(self.table.known[slot])) - len(hits)
        room = self.memory.available - self.memory.idle_among(hits)
        return need + self.memory.soon(company) - room

    def _enter(self, slot: int, hits: list[int], most: int, now: float) -> int:
        """Move one waiting sequence in; returns the rows it gets in this step."""
        table = self.table
        cached = self._adopt(slot, hits, now)
        self.memory.came(slot, now)
        if table.preemptions[slot] == 0:
            table.admitted[slot] = now
        table.state[slot] = RUNNING
        self._starting = True
        self.line.leave(slot)
        rows = min(int(table.known[slot] - table.computed[slot]), most)
        one = np.array([slot], dtype=np.int32)
        end = table.computed[one] + np.int32(rows)
        self._enter_memory(one, end, *self.memory.missing(one, end), now)
        if self._observers:
            self._tell(Admitted(int(table.handle[slot]), now, cached))
        return rows

    def _adopt(self, slot: int, hits: list[int], now: float) -> int:
        """Take listed pages; what a preemption gave up and the cache still has was not lost."""
        cached = self.memory.adopt(slot, hits, now)
        saved = min(cached, int(self.table.lost[slot]))
        self.table.lost[slot] -= saved
        self.table.cached[slot] += cached - saved
        self.counters.lost -= saved
        self.counters.cached += cached
        return cached

    def _tell(self, event: Event) -> None:
        for policy in self._observers:
            policy.observe(event)
