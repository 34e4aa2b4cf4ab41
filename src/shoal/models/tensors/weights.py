"""Weights in memory: checked against the architecture first, then read a slice of rows at a time.

Rows are converted straight into the tensor that stays, so that memory never holds a tensor twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from shoal.kernels.native import TILE, Session, padded_rows
from shoal.models.architecture import Architecture, Parameter, Part
from shoal.models.parameters import HasShape, check_tensors, no_memory, slices

BLOCK_ELEMENTS = 1 << 20


class TensorSource(Protocol):
    """Stored tensors by their Hugging Face names."""

    @property
    def tensors(self) -> Mapping[str, HasShape]: ...

    def fill(self, name: str, start: int, out: Tensor) -> None:
        """Rows of the tensor from ``start`` on into ``out``, as many as it has and as its type."""
        ...


@dataclass(frozen=True)
class Weights:
    """Every parameter of an architecture under its name there; norms are float32 factors.

    packed: whether matrices lie as the compiled kernels want them, and mean nothing to torch.
    """

    tensors: Mapping[str, Tensor]
    dtype: torch.dtype
    device: torch.device
    packed: bool = False

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def load_weights(
    architecture: Architecture,
    source: TensorSource,
    dtype: torch.dtype,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None = None,
    session: Session | None = None,
    ready: Mapping[str, Tensor] = MappingProxyType({}),
) -> Weights:
    """All parameters of ``architecture`` from ``source``.

    Args:
        progress: called with the bytes in place so far and their total.
        session: packs each stretch of a matrix as soon as it is read, while caches hold it.
        ready: matrices that are read and packed already.

    Raises:
        OperatorError: a tensor is missing, of another shape, or not one the architecture has (named); or
            memory does not reach.
    """
    device = torch.device(device)
    stored = check_tensors(architecture, source.tensors)
    total, done = architecture.weight_bytes(dtype.itemsize), 0
    # All that stays is allocated first: scratch that came and went in between would leave holes.
    tensors = {
        parameter.name: _allocate(
            parameter, torch.float32 if parameter.role == "norm" else dtype, device, total
        )
        for parameter in architecture.parameters()
        if parameter.name not in ready
    } | dict(ready)
    for parameter in architecture.parameters():
        target = tensors[parameter.name]
        if parameter.name in ready:
            done += target.nbytes
            continue
        packed = 0
        for filled in _fill(target, parameter, source, stored):
            if session is not None and parameter.role == "matrix":
                whole = filled if filled == len(target) else filled - filled % TILE
                if whole > packed:
                    session.pack(target[packed:whole])
                packed = whole
        if parameter.shift:
            target += parameter.shift
        done += target.nbytes
        if progress is not None:
            progress(done, total)
    return Weights(tensors, dtype, device, packed=session is not None)


def _allocate(parameter: Parameter, dtype: torch.dtype, device: torch.device, total: int) -> Tensor:
    """Matrices in main memory have room for a whole number of tiles, so that they can be packed in place."""
    shape = parameter.shape
    try:
        if parameter.role == "matrix" and device.type == "cpu":
            return torch.empty((padded_rows(shape[0]), shape[1]), dtype=dtype)[: shape[0]]
        return torch.empty(shape, dtype=dtype, device=device)
    except (RuntimeError, MemoryError) as error:
        raise no_memory(parameter, dtype.itemsize, total) from error


def _fill(
    target: Tensor, parameter: Parameter, source: TensorSource, stored: Mapping[str, str]
) -> Iterator[int]:
    """Read all parts of a parameter, a few rows at a time; yields how many rows are there."""
    for part, first, rows in slices(parameter, target.nbytes // len(target)):
        out = target[first + rows.start : first + rows.stop]
        staged = out if out.device.type == "cpu" else torch.empty(out.shape, dtype=out.dtype)
        source.fill(stored[part.name], rows.start, staged)
        if staged is not out:
            out.copy_(staged)
        yield first + rows.stop


class DummySource:
    """Random weights: every tensor depends on (seed, its name) alone. Norms leave their input's size.

    Values are drawn in blocks of whole rows, so any slice of rows is the same as in the whole.
    """

    def __init__(self, architecture: Architecture, seed: int) -> None:
        self.seed = seed
        self.tensors: dict[str, Part] = {}
        self._norms: dict[str, float] = {}
        for parameter in architecture.parameters():
            for part in parameter.parts:
                self.tensors[part.name] = part
                if parameter.role == "norm":
                    self._norms[part.name] = 1.0 - parameter.shift

    def fill(self, name: str, start: int, out: Tensor) -> None:
        shape, stop = self.tensors[name].shape, start + len(out)
        if name in self._norms:
            out.fill_(self._norms[name])
            return
        height = max(1, BLOCK_ELEMENTS // (shape[1] if len(shape) == 2 else 1))
        for block in range(start // height, -(-stop // height)):
            first = block * height
            drawn = self._block(name, block, (min(height, shape[0] - first), *shape[1:]))
            low, high = max(start, first), min(stop, first + len(drawn))
            out[low - start : high - start] = drawn[low - first : high - first]

    def _block(self, name: str, block: int, shape: tuple[int, ...]) -> Tensor:
        # The generator takes no more than 32 bits of its seed.
        key = zlib.crc32(f"{self.seed}:{name}:{block}".encode())
        generator = torch.Generator().manual_seed(key)
        return torch.empty(shape).normal_(0.0, 0.02, generator=generator)


def dummy_source(architecture: Architecture, seed: int = 0) -> DummySource:
    """Random weights for ``--load-format dummy``: standard deviation 0.02."""
    return DummySource(architecture, seed)
