"""Matrices that can be read and packed without torch, on a thread of their own, while torch is imported.

They are those whose numbers are stored as they are wanted, and those of GGUF's blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shoal.kernels.native import BLOCKS, TILE, Session, padded_rows
from shoal.models.architecture import Architecture, Parameter
from shoal.models.parameters import check_tensors, no_memory, slices
from shoal.models.tensors.stored import Stored

if TYPE_CHECKING:
    from shoal.models.files import ModelFiles

ITEM_BYTES = {"F32": 4, "BF16": 2}
POLL = 0.05
"""Seconds between two words about how far it is."""


class Ahead:
    """Reads and packs from when it is made; ``take`` waits for it.

    Args:
        wanted: F32 or BF16.

    Raises:
        OperatorError: as ``check_tensors``.
    """

    def __init__(self, architecture: Architecture, files: ModelFiles, wanted: str, session: Session) -> None:
        self._architecture, self._files = architecture, files
        self._wanted, self._session = wanted, session
        self._names = check_tensors(architecture, files.tensors)
        self._stored = Stored()
        self._done: dict[str, npt.NDArray[np.uint8]] = {}
        self._bytes = 0
        self._given_up = False
        self._failed: Exception | None = None
        matrices = [p for p in architecture.parameters() if p.role == "matrix" and self._can(p)]
        self._thread = threading.Thread(target=self._read, args=[matrices], name="weights", daemon=True)
        self._thread.start()

    def take(self, progress: Callable[[int, int], None] | None = None) -> dict[str, npt.NDArray[np.uint8]]:
        """The bytes of packed matrices by parameter, with room for whole tiles.

        Args:
            progress: called with the bytes in place so far and those of all parameters; if it throws, no
                more is read.

        Raises:
            Exception: what went wrong on the way, or what ``progress`` throws.
        """
        total = self._architecture.weight_bytes(ITEM_BYTES[self._wanted])
        while self._thread.is_alive():
            self._thread.join(POLL if progress is not None else None)
            if progress is not None:
                self._say(progress, total)
        if self._failed is not None:
            raise self._failed
        return self._done

    def _say(self, progress: Callable[[int, int], None], total: int) -> None:
        try:
            progress(self._bytes, total)
        except BaseException:
            self._given_up = True
            raise

    def _can(self, parameter: Parameter) -> bool:
        infos = [self._files.tensors[self._names[part.name]] for part in parameter.parts]
        known = (self._wanted, *BLOCKS)
        return not parameter.shift and all(i.transform == "none" and i.stored in known for i in infos)

    def _read(self, matrices: list[Parameter]) -> None:
        try:
            for parameter in matrices:
                if self._given_up:
                    return
                self._done[parameter.name] = self._matrix(parameter)
        except Exception as error:  # is raised where it is waited for
            self._failed = error

    def _matrix(self, parameter: Parameter) -> npt.NDArray[np.uint8]:
        outputs, inputs = parameter.shape
        item = ITEM_BYTES[self._wanted]
        try:
            room = np.empty((padded_rows(outputs), inputs * item), np.uint8)
        except MemoryError as error:
            raise no_memory(parameter, item, self._architecture.weight_bytes(item)) from error
        packed = 0
        for filled in self._fill(parameter, room):
            whole = filled if filled == outputs else filled - filled % TILE
            if whole > packed:
                self._session.pack_at(room[packed:].ctypes.data, whole - packed, inputs, item)
            packed = whole
        return room

    def _fill(self, parameter: Parameter, room: npt.NDArray[np.uint8]) -> Iterator[int]:
        """Read all parts of a matrix, a few rows at a time; yields how many rows are there."""
        for part, first, rows in slices(parameter, room.shape[1]):
            if self._given_up:
                return
            info = self._files.tensors[self._names[part.name]]
            out = room[first + rows.start : first + rows.stop]
            if info.stored == self._wanted:
                out[:] = self._stored.rows(info, rows)
            else:
                blocks = self._stored.blocks(info, rows)
                self._session.decode_at(info.stored, blocks, out.ctypes.data, ITEM_BYTES[self._wanted])
            self._stored.let_go(info, rows.start, rows.stop - rows.start)
            self._bytes += out.nbytes
            yield first + rows.stop
