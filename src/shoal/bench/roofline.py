"""What was measured of a machine's arithmetic."""

from __future__ import annotations

import msgspec

from shoal.bench.limit import Shapes


class Roofline(msgspec.Struct, frozen=True, kw_only=True):
    """Rates of products and reading.

    Attributes:
        read: bytes a second of a plain loop.
        threads: that measured it.
        shapes: (outputs, inputs) of the products, one layer's.
        rates: operations a second (two a multiply-add) by type and number of rows.
    """

    read: float
    threads: int
    shapes: Shapes
    rates: dict[str, dict[int, float]]
