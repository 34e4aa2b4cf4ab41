"""The sequence table: everything the engine knows of its sequences, one numpy column a field.

A sequence is a *slot*, an index into every column, from arrival to its answer; slots are used again,
handles never. Lengths are stored and the rest is derived:

    0 <= computed < known <= limit          tokens with K/V, tokens whose id is known, most allowed
    prompt <= known

Token ids lie in one flat array (``tokens``): those of slot s are ``ids[base[s] : base[s] + known[s]]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.core.request import Ids, Request

FREE, WAITING, RUNNING = 0, 1, 2

_COLUMNS: dict[str, Any] = {
    "handle": np.int64,
    "state": np.int8,
    "prompt": np.int32,
    "known": np.int32,
    "computed": np.int32,
    "limit": np.int32,
    "floor": np.int32,
    "emit": np.int32,
    "scores_prompt": np.bool_,
    "key": np.float64,
    "pages": np.int32,
    "border": np.int32,
    "node": np.int32,
    "shared": np.int32,
    "skipped": np.int32,
    "cached": np.int32,
    "adopted": np.int32,
    "preemptions": np.int32,
    "dropped": np.int32,
    "lost": np.int32,
    "arrived": np.float64,
    "admitted": np.float64,
    "first_token": np.float64,
    "base": np.int64,
    "room": np.int64,
}


class SequenceTable:
    """Columns by slot. Meanings beyond the module's invariant:

    floor: no end is honoured before ``known`` reaches this. emit: what the last row emits (core.plan).
    scores_prompt: the prompt's own tokens are scored too. key: the order policy's sort key.
    pages: entries of its page table in use. border: computed tokens at which its next page goes into the
    prefix index, below page ``node`` (negative at the root of its domain); ``NEVER`` once it no longer lists
    pages. shared: most tokens that it takes from that index or lists there.
    skipped: newcomers that passed it in the queue. adopted: tokens taken from the prefix cache. dropped:
    computed tokens given up by preemption or failure. lost: by preemption, and not found in the cache again.
    cached: adopted ones beside those found again. room: ids its stretch of ``ids`` holds.
    stop_ids: shape (slots, widest), ids that end the sequence, padded with -1.
    """

    handle: npt.NDArray[np.int64]
    state: npt.NDArray[np.int8]
    prompt: npt.NDArray[np.int32]
    known: npt.NDArray[np.int32]
    computed: npt.NDArray[np.int32]
    limit: npt.NDArray[np.int32]
    floor: npt.NDArray[np.int32]
    emit: npt.NDArray[np.int32]
    scores_prompt: npt.NDArray[np.bool_]
    key: npt.NDArray[np.float64]
    pages: npt.NDArray[np.int32]
    border: npt.NDArray[np.int32]
    node: npt.NDArray[np.int32]
    shared: npt.NDArray[np.int32]
    skipped: npt.NDArray[np.int32]
    cached: npt.NDArray[np.int32]
    adopted: npt.NDArray[np.int32]
    preemptions: npt.NDArray[np.int32]
    dropped: npt.NDArray[np.int32]
    lost: npt.NDArray[np.int32]
    arrived: npt.NDArray[np.float64]
    admitted: npt.NDArray[np.float64]
    first_token: npt.NDArray[np.float64]
    base: npt.NDArray[np.int64]
    room: npt.NDArray[np.int64]

    def __init__(self) -> None:
        for name, dtype in _COLUMNS.items():
            setattr(self, name, np.zeros(0, dtype=dtype))
        self.stop_ids = np.zeros((0, 1), dtype=np.int32)
        self.requests: list[Request | None] = []
        self.tokens = TokenStore()
        self._free: list[int] = []
        self._slot_of: dict[int, int] = {}
        self._next_handle = 0

    def __len__(self) -> int:
        """Sequences in the table."""
        return len(self._slot_of)

    def slot_of(self, handle: int) -> int | None:
        """None once the sequence has its answer."""
        return self._slot_of.get(handle)

    def add(self, request: Request, *, limit: int, stop_ids: tuple[int, ...], now: float) -> int:
        """A new waiting sequence; returns its slot."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        for name in _COLUMNS:
            getattr(self, name)[slot] = 0
        length = len(request.prompt)
        self.handle[slot] = self._next_handle
        self.state[slot] = WAITING
        self.prompt[slot] = self.known[slot] = length
        self.limit[slot] = limit
        self.floor[slot] = length + request.params.min_tokens
        self.arrived[slot] = now
        self.base[slot], self.room[slot] = self.tokens.take(length + 1)
        self.tokens.ids[self.base[slot] : self.base[slot] + length] = request.prompt
        self._set_stop_ids(slot, stop_ids)
        self.requests[slot] = request
        self._slot_of[self._next_handle] = slot
        self._next_handle += 1
        return slot

    def remove(self, slot: int) -> None:
        """The sequence has its answer; its slot and its token ids' place are free."""
        self.tokens.give(int(self.base[slot]), int(self.room[slot]))
        del self._slot_of[int(self.handle[slot])]
        self.state[slot] = FREE
        self.requests[slot] = None
        self._free.append(slot)

    def ids(self, slot: int, start: int = 0, stop: int | None = None) -> Ids:
        """A view of the known ids ``start:stop`` of one sequence."""
        base = self.base[slot]
        end = self.known[slot] if stop is None else stop
        return self.tokens.ids[base + start : base + end]

    def append(
        self,
        slots: npt.NDArray[np.int32],
        known: npt.NDArray[np.int32],
        base: npt.NDArray[np.int64],
        room: npt.NDArray[np.int64],
        tokens: npt.NDArray[np.int32],
    ) -> npt.NDArray[np.int32]:
        """One more known id for each of ``slots``; returns how many each knows now. Shapes (m,).

        ``known``, ``base`` and ``room`` are these columns at ``slots``, which callers have at hand.
        """
        full = known >= room
        if full.any():
            for slot in slots[full]:
                self._widen(int(slot))
            base = self.base[slots]
        self.tokens.ids[base + known] = tokens
        known = known + 1
        self.known[slots] = known
        return known

    def computed_rows(self, slot: int) -> int:
        """Rows computed for this sequence so far, those computed again included."""
        return int(self.computed[slot] + self.dropped[slot] - self.adopted[slot])

    def request(self, slot: int) -> Request:
        request = self.requests[slot]
        assert request is not None, f"slot {slot} is free"
        return request

    def slots_in(self, state: int) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.state == state)

    def check(self) -> None:
        """Raise AssertionError unless the columns keep their invariant."""
        used = self.state != FREE
        assert used.sum() == len(self._slot_of)
        assert np.all(self.computed[used] >= 0)
        assert np.all(self.computed[used] < self.known[used])
        assert np.all(self.known[used] <= self.limit[used])
        assert np.all(self.prompt[used] <= self.known[used])
        assert np.all(self.known[used] <= self.room[used])
        assert np.all(self.computed[self.state == WAITING] == 0), "a waiting sequence holds no K/V"
        assert np.all(self.pages[self.state == WAITING] == 0)

    def _set_stop_ids(self, slot: int, stop_ids: tuple[int, ...]) -> None:
        wide = self.stop_ids.shape[1]
        if len(stop_ids) > wide:
            more = np.full((len(self.stop_ids), len(stop_ids) - wide), -1, dtype=np.int32)
            self.stop_ids = np.concatenate([self.stop_ids, more], axis=1)
        self.stop_ids[slot] = -1
        self.stop_ids[slot, : len(stop_ids)] = stop_ids

    def _widen(self, slot: int) -> None:
        old_base, old_room = int(self.base[slot]), int(self.room[slot])
        base, room = self.tokens.take(2 * old_room)
        self.tokens.ids[base : base + old_room] = self.tokens.ids[old_base : old_base + old_room]
        self.tokens.give(old_base, old_room)
        self.tokens.moves += 1
        self.base[slot], self.room[slot] = base, room

    def _grow(self) -> None:
        old = len(self.requests)
        new = max(64, 2 * old)
        for name, dtype in _COLUMNS.items():
            column = np.zeros(new, dtype=dtype)
            column[:old] = getattr(self, name)
            setattr(self, name, column)
        stops = np.full((new, self.stop_ids.shape[1]), -1, dtype=np.int32)
        stops[:old] = self.stop_ids
        self.stop_ids = stops
        self.requests.extend([None] * (new - old))
        self._free.extend(range(new - 1, old - 1, -1))


class TokenStore:
    """One flat int32 array handed out in stretches of a power of two, given back by size.

    ``moves`` counts how often a sequence's stretch was exchanged for a longer one.
    """

    SMALLEST = 64

    def __init__(self) -> None:
        self.ids: Ids = np.zeros(1 << 14, dtype=np.int32)
        self.moves = 0
        self._end = 0
        self._spare: dict[int, list[int]] = {}

    def take(self, least: int) -> tuple[int, int]:
        """(first index, length) of a stretch of at least ``least`` ids."""
        room = max(self.SMALLEST, 1 << (least - 1).bit_length())
        spare = self._spare.get(room)
        if spare:
            return spare.pop(), room
        if self._end + room > len(self.ids):
            wider = np.zeros(max(2 * len(self.ids), self._end + room), dtype=np.int32)
            wider[: self._end] = self.ids[: self._end]
            self.ids = wider
        base = self._end
        self._end += room
        return base, room

    def give(self, base: int, room: int) -> None:
        self._spare.setdefault(room, []).append(base)
