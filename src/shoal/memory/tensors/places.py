"""Places: pages of a pool mapped side by side, as step plans say."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch import Tensor

from shoal.core.plan import I32, NO_MOVES, UNMAP
from shoal.memory.tensors.host import HostMemory


class Places:
    """A pool of pages of all layers, then places of ``depth`` pages each, in one range of addresses.

    A page has K and V of all layers, so that it is mapped by one call. A mapping for each layer's K and V
    would take twice as many as there are layers, and the system allows a process 65,530 by default.

    Attributes:
        room: (pages + places * depth, page_bytes), uint8: the pool's pages by their ids, then the places.
        mapped: (places, depth), int32, the page that is mapped there, or UNMAP.
    """

    def __init__(self, pages: int, page_bytes: int, places: int, depth: int) -> None:
        self.pages = pages
        self.depth = depth
        self.page_bytes = page_bytes
        self.memory = HostMemory(pages * page_bytes, places * depth * page_bytes)
        self.room: Tensor = self.memory.room.view(pages + places * depth, page_bytes)
        self.mapped: I32 = np.full((places, depth), UNMAP, dtype=np.int32)
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="shoal-map")
        self._begun: Future[None] | None = None
        self._ahead = NO_MOVES

    def map(self, maps: I32) -> None:
        """Make these mappings, (M, 3): place, index, page; those begun before are made first.

        Raises:
            OperatorError: the system refuses; they can be asked for again.
        """
        begun, self._begun = self._begun, None
        if begun is not None and begun.exception() is None:
            self._ahead = NO_MOVES
        # What failed beside a step is made again, for twice is as good as once.
        if len(self._ahead) or len(maps):
            self._make(np.concatenate([self._ahead, maps]))
            self._ahead = NO_MOVES

    def begin(self, maps: I32) -> None:
        """The same beside what the caller does next, until the next ``map``."""
        if len(maps):
            self._ahead = maps
            self._begun = self._beside.submit(self._make, maps)

    def covers(self, place: I32, first: I32, count: I32, pages: I32) -> bool:
        """Whether each run's pages (as in ``StepPlan``) are mapped in its place."""
        return all(
            np.array_equal(self.mapped[p, :n], pages[f : f + n])
            for p, f, n in zip(place.tolist(), first.tolist(), count.tolist())
        )

    def _make(self, maps: I32) -> None:
        size = self.page_bytes
        for place, index, page in maps.tolist():
            at = (self.pages + place * self.depth + index) * size
            if page == UNMAP:
                self.memory.unmap(at, size)
            else:
                self.memory.map(at, page * size, size)
            self.mapped[place, index] = page
