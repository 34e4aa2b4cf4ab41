"""Which stored tensor is which parameter of an architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from shoal.core.errors import OperatorError
from shoal.models.architecture import Architecture, Parameter, Part

SLICE_BYTES = 8 << 20


class HasShape(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def check_tensors(architecture: Architecture, found: Mapping[str, HasShape]) -> dict[str, str]:
    """The stored name of every tensor the architecture needs; nothing is read.

    Raises:
        OperatorError: one is missing, has another shape, stands there twice, or is not known.
    """
    needed = {part.name: part.shape for parameter in architecture.parameters() for part in parameter.parts}
    stored: dict[str, str] = {}
    for name, info in found.items():
        canonical = architecture.canonical(name)
        if architecture.ignores(canonical) or architecture.ignores(name):
            continue
        if canonical not in needed:
            raise OperatorError(
                f"tensor {name[:200]!r} is not part of {architecture.name}",
                remedy="the model has parts shoal does not compute; use another model",
            )
        if canonical in stored:
            raise OperatorError(
                f"tensors {stored[canonical][:200]!r} and {name[:200]!r} are the same one",
                remedy="remove one of them",
            )
        if tuple(info.shape) != needed[canonical]:
            raise OperatorError(
                f"tensor {name[:200]!r} has shape {tuple(info.shape)}, config.json says {needed[canonical]}",
                remedy="download the model again, or correct config.json",
            )
        stored[canonical] = name
    for name in needed:
        if name not in stored:
            raise OperatorError(f"tensor {name!r} is missing", remedy="download the model again")
    return stored


def slices(parameter: Parameter, row_bytes: int) -> Iterator[tuple[Part, int, slice]]:
    """All rows, a few at a time: of which part, where that begins in the parameter, and which of its rows."""
    step = max(1, SLICE_BYTES // max(1, row_bytes))
    first = 0
    for part in parameter.parts:
        for row in range(0, part.shape[0], step):
            yield part, first, slice(row, min(row + step, part.shape[0]))
        first += part.shape[0]


def no_memory(parameter: Parameter, itemsize: int, total: int) -> OperatorError:
    """What to say where a parameter finds no room; ``total``: bytes of all of them."""
    return OperatorError(
        f"no memory for {parameter.name} of {parameter.elements * itemsize / 1e9:.2f} GB "
        f"(all weights: {total / 1e9:.2f} GB)",
        remedy="use a smaller model, a smaller type, or a machine with more memory",
    )
