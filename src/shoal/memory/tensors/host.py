"""Main memory in which one page can be seen at several addresses: a file without a name, mapped piece by
piece into a reserved range.

An accelerator's driver has the same four calls (reserve addresses, create memory, map, unmap), so a class
for it would have the same face.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

import torch
from torch import Tensor

from shoal.core.errors import OperatorError

GRAIN = mmap.PAGESIZE
"""Addresses and sizes are multiples of this."""
_FIXED, _NO_RESERVE, _POPULATE = 0x10, 0x4000, 0x8000
_READ, _WRITE = mmap.PROT_READ, mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value


def _call(name: str, result: type, *arguments: type) -> ctypes._NamedFuncPointer:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype, function.argtypes = result, arguments
    return function


class HostMemory:
    """``size`` bytes of memory, and a range of addresses that begins with all of it and goes on for ``more``
    bytes where pieces of it are mapped.

    What is not mapped reads as zeros and cannot be written.

    Attributes:
        room: the range, (size + more,), uint8.

    Raises:
        OperatorError: the system gives no such range.
    """

    def __init__(self, size: int, more: int) -> None:
        assert size % GRAIN == more % GRAIN == 0
        self.size = size
        self._mmap = _call(
            "mmap", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long
        )
        self._file = os.memfd_create("shoal-kv", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, size)
        self._base = self._at(None, size + more, _READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        unmap = _call("munmap", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
        weakref.finalize(self, unmap, self._base, size + more)
        self._at(self._base, size, _READ | _WRITE, mmap.MAP_SHARED | _FIXED, self._file)
        whole = (ctypes.c_char * (size + more)).from_address(self._base)
        self.room: Tensor = torch.frombuffer(whole, dtype=torch.uint8)

    @property
    def resident(self) -> int:
        """Bytes of the memory that the system has given so far."""
        return os.fstat(self._file).st_blocks * 512

    def map(self, at: int, offset: int, size: int) -> None:
        """Let bytes ``at`` of the range (beyond the first ``size``) be those from ``offset`` of the memory.

        Raises:
            OperatorError: there are too many mappings, or no memory.
        """
        flags = mmap.MAP_SHARED | _FIXED | _POPULATE
        self._at(self._base + at, size, _READ | _WRITE, flags, self._file, offset)

    def unmap(self, at: int, size: int) -> None:
        """Let these bytes of the range be nothing.

        Raises:
            OperatorError: there are too many mappings.
        """
        self._at(self._base + at, size, _READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE | _FIXED)

    def _at(
        self, address: int | None, size: int, protection: int, flags: int, file: int = -1, offset: int = 0
    ) -> int:
        found = self._mmap(address, size, protection, flags, file, offset)
        if found == _FAILED:
            raise OperatorError(
                f"{size:,} bytes of KV memory cannot be mapped: {os.strerror(ctypes.get_errno())}",
                remedy="use a larger --page-size, a smaller --kv-memory, or --layout paged",
            )
        return int(found)
