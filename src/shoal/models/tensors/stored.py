"""The bytes of stored tensors, in mapped files."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shoal.core.errors import OperatorError
from shoal.models.gguf import BLOCK_TYPES
from shoal.models.tensor_info import TensorInfo

BLOCK_SHAPES = {name: (elements, size) for name, elements, size in BLOCK_TYPES.values()}
"""Elements and bytes of a block, by GGUF's name of the type."""


class Stored:
    """Files are mapped when they are first asked for."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def mapped(self, file: Path) -> mmap.mmap:
        """The whole file.

        Raises:
            OperatorError: it is gone, or cannot be mapped.
        """
        if file not in self._maps:
            try:
                with file.open("rb") as opened:
                    # Copy on write, so that torch takes it for writable and does not warn.
                    self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise OperatorError(
                    f"cannot be mapped: {error}", where=str(file), remedy="check the file"
                ) from None
        return self._maps[file]

    def rows(self, info: TensorInfo, rows: slice) -> npt.NDArray[np.uint8]:
        """Some rows as they are stored, (rows, bytes of a row)."""
        stored = np.frombuffer(self.mapped(info.file), np.uint8, info.size, info.offset)
        return stored.reshape(info.shape[0], -1)[rows]

    def blocks(self, info: TensorInfo, rows: slice) -> npt.NDArray[np.uint8]:
        """The blocks of some rows as they are stored, (blocks, bytes of a block)."""
        return self.rows(info, rows).reshape(-1, BLOCK_SHAPES[info.stored][1])

    def let_go(self, info: TensorInfo, start: int, count: int) -> None:
        """The pages of the file under so many rows, so that they never pile up."""
        width = info.size // max(1, info.shape[0])
        begin = (info.offset + start * width) // mmap.PAGESIZE * mmap.PAGESIZE
        end = info.offset + (start + count) * width
        self.mapped(info.file).madvise(mmap.MADV_DONTNEED, begin, end - begin)
