"""Stored tensors as torch tensors: views over the file where that is possible, converted a few rows at a
time where it is not, so that loading needs little memory beyond the weights themselves."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from shoal.core.errors import OperatorError
from shoal.models.gguf import BLOCK_TYPES
from shoal.models.tensor_info import TensorInfo
from shoal.models.tensors.dequantize import DECODERS, dequantize

if TYPE_CHECKING:
    from shoal.models.files import ModelFiles

PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCKS = {name: (elements, size) for name, elements, size in BLOCK_TYPES.values()}
_SCRATCH_ELEMENTS = 1 << 18

Fetch = Callable[[slice], torch.Tensor]


class TensorReader:
    """Reads the tensors of one model's files.

    Attributes:
        tensors: what can be read, by Hugging Face name.
    """

    def __init__(self, files: ModelFiles) -> None:
        self.tensors = files.tensors
        self._maps: dict[Path, mmap.mmap] = {}

    def read(self, name: str, rows: slice | None, dtype: torch.dtype) -> torch.Tensor:
        """Tensor ``name`` (or ``rows`` of its first dimension) in ``dtype``, on the CPU.

        Where the stored values are wanted unchanged the answer is a view over the mapped file: reading
        it costs no anonymous memory, and writing to it changes private copies of its pages only.

        Raises:
            KeyError: no such tensor.
            OperatorError: its stored type cannot be read, or the file is gone.
        """
        info = self.tensors[name]
        count = info.shape[0] if info.shape else 1
        start, stop, step = (rows or slice(None)).indices(count)
        if step != 1:
            raise ValueError("rows must be a slice of step 1")
        stop = max(start, stop)
        shape = (stop - start, *info.shape[1:]) if info.shape else ()
        if info.stored in PLAIN_TYPES:
            fetch = self._plain(info)
            if info.transform == "none":
                return fetch(slice(start, stop)).view(shape).to(dtype)
        elif info.stored in DECODERS:
            fetch = self._decoder(info)
        else:
            raise OperatorError(
                f"tensor {name!r} is stored as {info.stored}, which shoal does not compute with",
                where=str(info.file),
                remedy="use a file whose weights are F32, F16 or BF16",
            )
        out = torch.empty((stop - start, math.prod(info.shape[1:])), dtype=dtype)
        if info.transform == "unpermute":
            _unpermute(fetch, info, start, out)
        else:
            minus = 1.0 if info.transform == "minus_one" else 0.0
            _convert(fetch, start, minus, out)
        return out.view(shape)

    def _mapped(self, file: Path) -> mmap.mmap:
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

    def _plain(self, info: TensorInfo) -> Fetch:
        """Rows of a tensor of numbers, as they are stored: views over the mapped file.

        Some files have tensors at odd places, from which a processor reads no number: those are copied.
        """
        stored = PLAIN_TYPES[info.stored]
        columns = math.prod(info.shape[1:])
        width = columns * stored.itemsize

        def fetch(rows: slice) -> torch.Tensor:
            count = rows.stop - rows.start
            if not count * width:
                return torch.empty((count, columns), dtype=stored)
            offset = info.offset + rows.start * width
            raw = torch.frombuffer(
                self._mapped(info.file), dtype=torch.uint8, count=count * width, offset=offset
            )
            return (raw.clone() if offset % stored.itemsize else raw).view(stored).view(count, columns)

        return fetch

    def _decoder(self, info: TensorInfo) -> Fetch:
        """Rows of a tensor of blocks, dequantised when asked for."""
        elements, block_bytes = _BLOCKS[info.stored]
        columns = info.shape[-1]
        stored = np.frombuffer(self._mapped(info.file), np.uint8, info.size, info.offset)
        by_row = stored.reshape(-1, columns // elements, block_bytes)

        def fetch(rows: slice) -> torch.Tensor:
            blocks = by_row[rows].reshape(-1, block_bytes)
            out = np.empty((len(blocks), elements), np.float32)
            dequantize(blocks, info.stored, out)
            return torch.from_numpy(out).view(-1, columns)

        return fetch


def _convert(fetch: Fetch, start: int, minus: float, out: torch.Tensor) -> None:
    """Rows from ``start`` on into ``out`` (rows, columns), a bounded number of elements at a time."""
    step = max(1, _SCRATCH_ELEMENTS // max(1, out.shape[1]))
    for begin in range(0, len(out), step):
        end = min(begin + step, len(out))
        part = fetch(slice(start + begin, start + end))
        out[begin:end] = part.to(torch.float32) - minus if minus else part


def _unpermute(fetch: Fetch, info: TensorInfo, start: int, out: torch.Tensor) -> None:
    """Rows from ``start`` on, in Hugging Face's order, into ``out`` (rows, columns).

    llama.cpp's converter interleaves the two halves of each head: its row 2i + j is row j * half + i.
    """
    size = info.shape[0] // info.heads
    stop = start + len(out)
    for head in range(start // size, -(-stop // size)):
        base = head * size
        first, last = max(start, base), min(stop, base + size)
        rows = fetch(slice(base, base + size))
        ordered = rows.view(size // 2, 2, -1).transpose(0, 1).reshape(size, -1)
        out[first - start : last - start] = ordered[first - base : last - base]
