"""What layout ``contiguous`` asks of the machine and of the size of pages, checked before loading."""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path

from shoal.core.config import EngineConfig
from shoal.core.errors import OperatorError
from shoal.models.architecture import Architecture

TILE = 16
"""Positions that the compiled kernels lay side by side."""
OTHERS = 4096
"""Mappings left for libraries, weights and threads."""
_LIMIT = Path("/proc/sys/vm/max_map_count")


def check(
    config: EngineConfig, architecture: Architecture, item: int, compiled: bool, places: int, depth: int
) -> int:
    """Refuse what cannot be mapped; returns the bytes of a page.

    Args:
        item: bytes of an element.
        compiled: whether the compiled kernels compute, which round a head's values up to whole tiles.
        places, depth: how many places there are, and how many pages each has.

    Raises:
        OperatorError: no such memory on this device or system, pages that are not whole pages of the system,
            or more mappings than it allows.
    """
    if config.device != "cpu":
        raise OperatorError(
            f"--layout contiguous runs on the CPU, not on {config.device}", remedy="use paged"
        )
    if not hasattr(os, "memfd_create"):
        raise OperatorError("this system cannot map memory at several addresses", remedy="use --layout paged")
    token_bytes = architecture.kv_bytes_per_token(item)
    if compiled:
        attentions = [layer.attention for layer in architecture.layers]
        token_bytes = (
            sum(a.kv_heads * (a.head_size + -(-a.head_size // TILE) * TILE) for a in attentions) * item
        )
    grain = math.lcm(TILE, mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, token_bytes))
    if config.page_size % grain:
        raise OperatorError(
            f"a page of {config.page_size} positions is no whole number of the system's pages",
            remedy=f"give --page-size a multiple of {grain}",
        )
    allowed = max_mappings() - OTHERS
    if places * (depth + 1) > allowed:
        most = max(1, allowed // places - 1)
        needed = -(-depth * config.page_size // most)
        remedy = f"use --page-size {-(-needed // grain) * grain}, or lower --max-num-seqs or --max-model-len"
        raise OperatorError(
            f"{places} places of {depth} pages are more mappings than the system allows, {max_mappings():,}",
            remedy=remedy,
        )
    return config.page_size * token_bytes


def max_mappings() -> int:
    """Mappings that the system allows a process."""
    try:
        return int(_LIMIT.read_text())
    except (OSError, ValueError):
        return 65_530
