"""Main memory for what kernels read much of."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor


def stretch(size: int) -> Tensor:
    """So many bytes, (size,), uint8, in huge pages where the system has them: with small ones, kernels that
    read much for few rows wait for the translation of addresses. The system commits them as they are written.

    Raises:
        OSError, RuntimeError: there is not so much.
    """
    if not size or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=torch.uint8)
