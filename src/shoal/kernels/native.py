"""The compiled kernels of this machine's processor, called through ctypes.

The library is built with the package from ``native/``; where there was no compiler it is missing, and
``available`` says so. Structs here mirror ``native/abi.h`` field by field. A call gives up the interpreter's
lock, so that other Python threads run beside a step.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

TILE = 16
"""Outputs of a matrix, or positions of a page of keys, that lie side by side."""
MOST_TURNS = 8
"""Rotary tables that one model may have."""


class Matrix(Structure):
    """A packed matrix of (outputs, inputs)."""

    _fields_ = [("data", c_void_p), ("bias", c_void_p), ("outputs", c_int64), ("inputs", c_int64)]


class Layer(Structure):
    """A layer's weights, its part of the cache, and its shape."""

    _fields_ = [
        *((name, c_void_p) for name in ("attention_before", "attention_after", "mlp_before", "mlp_after")),
        *((name, c_void_p) for name in ("query_norm", "key_norm")),
        *((name, Matrix) for name in ("qkv", "output", "gate_up", "down")),
        *((name, c_void_p) for name in ("keys", "values")),
        *((name, c_int64) for name in ("heads", "kv_heads", "head_size", "window", "rotary")),
        *((name, c_int64) for name in ("intermediate", "activation")),
        *((name, c_float) for name in ("epsilon", "scale")),
    ]


class Cache(Structure):
    """The shape of every layer's cache; ``stride``: numbers from a page to the next where a page has all
    layers and heads, 0 where a head's pages lie side by side."""

    _fields_ = [("pages", c_int64), ("page_size", c_int64), ("stride", c_int64)]


class Model(Structure):
    """A whole model; ``bf16``: its matrices and its cache, else float32."""

    _fields_ = [
        *((name, c_int64) for name in ("bf16", "hidden", "layer_count")),
        ("layers", POINTER(Layer)),
        *((name, Matrix) for name in ("embed", "head")),
        ("head_norm", c_void_p),
        *((name, c_float) for name in ("head_epsilon", "embed_scale")),
    ]


class Turns(Structure):
    """Cosine and sine of every position, (positions, head_size / 2) each."""

    _fields_ = [("cosine", c_void_p), ("sine", c_void_p)]


class Step(Structure):
    """The integers of a step plan; ``place``: at which page of the cache a run's pages begin, or null."""

    _fields_ = [
        *((name, c_int64) for name in ("rows", "runs")),
        *((name, c_void_p) for name in ("token", "position", "first_row", "run_rows", "first_page", "pages")),
        ("place", c_void_p),
        ("turns", Turns * MOST_TURNS),
    ]


STAGES = ("embed", "norms", "q/k/v", "place", "attention", "output", "gate and up", "down")
"""What a step is divided into where somebody looks."""
BLOCKS = ("Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""GGUF's types of blocks that ``Session.decode`` reads."""
BEST = np.dtype([("value", np.float32), ("output", np.int32)])
"""The largest output of a row, and which it is."""

_CALLS: dict[str, tuple[list[object], object]] = {
    "shoal_open": ([c_int, c_char_p, c_int], c_void_p),
    "shoal_close": ([c_void_p], None),
    "shoal_name": ([c_void_p], c_char_p),
    "shoal_positions_read": ([c_void_p], c_int64),
    "shoal_pairs": ([c_void_p], c_int),
    "shoal_pack": ([c_void_p, c_void_p, c_int64, c_int64, c_int], c_int),
    "shoal_decode": ([c_void_p, c_int, c_void_p, c_int64, c_void_p, c_int], c_int),
    "shoal_watch": ([c_void_p, c_void_p], None),
    "shoal_unpack": ([c_void_p, POINTER(Matrix), c_int, c_void_p, c_int64, c_void_p], c_int),
    "shoal_product": ([c_void_p, c_void_p, c_int64, POINTER(Matrix), c_void_p, c_int, c_int], c_int),
    "shoal_forward": ([c_void_p, POINTER(Model), POINTER(Cache), POINTER(Step), c_void_p], c_int),
    "shoal_head": ([c_void_p, POINTER(Model), c_void_p, c_int64, c_void_p], c_int),
    "shoal_best": ([c_void_p, POINTER(Model), c_void_p, c_int64, c_void_p], c_int),
    "shoal_attention": (
        [c_void_p, POINTER(Model), POINTER(Cache), POINTER(Step), c_void_p, c_void_p],
        c_int,
    ),
    "shoal_norm": ([c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_float], None),
    "shoal_activate": ([c_void_p, c_void_p, c_void_p, c_int64, c_int64], None),
}


@cache
def _library() -> ctypes.CDLL | None:
    found = sorted(Path(__file__).parent.glob("_native*.so"))
    if not found:
        return None
    library = ctypes.CDLL(str(found[0]))
    for name, (arguments, result) in _CALLS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


def available() -> bool:
    """Whether the package was built with its kernels."""
    return _library() is not None


class Session:
    """Threads and scratch of the compiled kernels.

    Args:
        threads: that work on a step together; they sleep between steps.
        kernels: the instruction set by name (``portable``, ``AVX2``); by default, and where the processor
            lacks the one named, the widest it has.
        share: whether attention reads what several runs have on the same pages once for all of them; the
            results are the same bits.

    Raises:
        MemoryError: there is none left; so does every call.
        RuntimeError: the kernels were not built.
    """

    def __init__(self, threads: int, kernels: str = "", share: bool = True) -> None:
        library = _library()
        if library is None:
            raise RuntimeError("the compiled kernels were not built")
        self._library = library
        self._handle = library.shoal_open(threads, kernels.encode(), int(share))
        if not self._handle:
            raise MemoryError("no memory for the compiled kernels' threads")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.shoal_close(self._handle)

    @property
    def name(self) -> str:
        """The instruction set in use."""
        return self._library.shoal_name(self._handle).decode()

    @property
    def positions_read(self) -> int:
        """Positions of K and V that attention has read so far, each once for all queries it is scored with
        together, over all layers and heads of K and V."""
        return self._library.shoal_positions_read(self._handle)

    @property
    def pairs(self) -> bool:
        """Whether products with bfloat16 matrices take bfloat16 rows, as processors do that multiply them."""
        return bool(self._library.shoal_pairs(self._handle))

    def call(self, name: str, *arguments: object) -> None:
        """Call ``shoal_<name>`` on this session."""
        if getattr(self._library, f"shoal_{name}")(self._handle, *arguments):
            raise MemoryError(f"no memory for scratch in {name}")

    def call_plain(self, name: str, *arguments: object) -> None:
        """Call a ``shoal_<name>`` that takes no memory and cannot fail."""
        getattr(self._library, f"shoal_{name}")(self._handle, *arguments)

    def pack(self, weight: Tensor) -> None:
        """Pack a matrix (outputs, inputs) where it lies; ``weight`` means nothing to torch from then on.

        Its storage reaches to a whole number of tiles: see ``padded_rows``.
        """
        outputs, inputs = weight.shape
        assert weight.is_contiguous()
        needed = padded_rows(outputs) * inputs * weight.itemsize
        assert weight.untyped_storage().nbytes() - weight.storage_offset() * weight.itemsize >= needed
        self.pack_at(weight.data_ptr(), outputs, inputs, weight.itemsize)

    def pack_at(self, address: int, outputs: int, inputs: int, itemsize: int) -> None:
        """The same for numbers of so many bytes that lie at ``address``."""
        self.call("pack", address, outputs, inputs, int(itemsize == 2))

    def decode(self, stored: str, blocks: npt.NDArray[np.uint8], out: Tensor) -> None:
        """Blocks of a GGUF type, shape (n, bytes of a block), to ``out``, contiguous, float32 or bfloat16."""
        assert out.is_contiguous()
        self.decode_at(stored, blocks, out.data_ptr(), out.itemsize)

    def decode_at(self, stored: str, blocks: npt.NDArray[np.uint8], address: int, itemsize: int) -> None:
        """The same to ``address``: float32 where a number has 4 bytes, bfloat16 where it has 2."""
        assert blocks.flags.c_contiguous
        kind = BLOCKS.index(stored)
        self.call("decode", kind, blocks.ctypes.data, len(blocks), address, int(itemsize == 2))

    def watch(self) -> None:
        """Add up, from now on, how long each stage of a step takes."""
        self._seconds = np.zeros(len(STAGES))
        self.call_plain("watch", self._seconds.ctypes.data)

    def unwatch(self) -> None:
        """Add up no longer."""
        self.call_plain("watch", None)

    def stage_seconds(self) -> dict[str, float]:
        """Seconds by STAGES while they were added up."""
        return dict(zip(STAGES, self._seconds.tolist()))


def matrix(weight: Tensor, bias: Tensor | None = None) -> Matrix:
    """What products take of a packed weight, and of the bias (outputs,) where there is one, of its type."""
    return Matrix(weight.data_ptr(), None if bias is None else bias.data_ptr(), *weight.shape)


def padded_rows(rows: int) -> int:
    """Rows to a whole number of tiles."""
    return -(-rows // TILE) * TILE
