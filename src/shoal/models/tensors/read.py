"""Stored tensors as torch tensors, converted from the mapped file a few rows at a time, so that loading needs
little memory beyond the weights themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from shoal.core.errors import OperatorError
from shoal.kernels.native import Session
from shoal.models.tensor_info import TensorInfo
from shoal.models.tensors.dequantize import DECODERS, dequantize
from shoal.models.tensors.stored import BLOCK_SHAPES, Stored

if TYPE_CHECKING:
    from shoal.models.files import ModelFiles

PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# torch hands larger copies to its threads; to wake them takes longer than to copy.
_SCRATCH_ELEMENTS = 1 << 15

Fetch = Callable[[slice], torch.Tensor]


class TensorReader:
    """Reads the tensors of one model's files.

    Args:
        session: compiled kernels, which read GGUF's blocks several times as fast as their plain twin.

    Attributes:
        tensors: what can be read, by Hugging Face name.
    """

    def __init__(self, files: ModelFiles, session: Session | None = None) -> None:
        self.tensors = files.tensors
        self._session = session
        self._stored = Stored()

    def fill(self, name: str, start: int, out: torch.Tensor) -> None:
        """Rows of tensor ``name`` from ``start`` on, as many as ``out`` has, converted into it: contiguous,
        on the CPU. The pages of the file that this touched are let go, so that they never pile up.

        Raises:
            KeyError: no such tensor.
            OperatorError: its stored type cannot be read, or the file is gone.
        """
        info = self.tensors[name]
        if not out.numel():
            return
        flat = out.view(len(out), -1)
        fetch = self._fetch(info)
        if info.transform == "unpermute":
            _unpermute(fetch, info, start, flat)
        elif info.transform == "none" and info.stored in DECODERS and self._session is not None:
            self._session.decode(info.stored, self._stored.blocks(info, slice(start, start + len(out))), flat)
        else:
            _convert(fetch, start, 1.0 if info.transform == "minus_one" else 0.0, flat)
        self._stored.let_go(info, start, len(out))

    def _fetch(self, info: TensorInfo) -> Fetch:
        if info.stored in PLAIN_TYPES:
            return self._plain(info)
        if info.stored in DECODERS:
            return self._decoder(info)
        raise OperatorError(
            f"tensor {info.name!r} is stored as {info.stored}, which shoal does not compute with",
            where=str(info.file),
            remedy="use a file whose weights are F32, F16 or BF16",
        )

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
                self._stored.mapped(info.file), dtype=torch.uint8, count=count * width, offset=offset
            )
            return (raw.clone() if offset % stored.itemsize else raw).view(stored).view(count, columns)

        return fetch

    def _decoder(self, info: TensorInfo) -> Fetch:
        """Rows of a tensor of blocks, dequantised when asked for."""

        def fetch(rows: slice) -> torch.Tensor:
            blocks = self._stored.blocks(info, rows)
            out = np.empty((len(blocks), BLOCK_SHAPES[info.stored][0]), np.float32)
            dequantize(blocks, info.stored, out)
            return torch.from_numpy(out).view(-1, info.shape[-1])

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
