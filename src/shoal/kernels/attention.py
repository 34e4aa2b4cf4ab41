"""Attention over pages in plain torch: the twin that every faster kernel must equal.

A layer's K and V are each (kv_heads, pages, page_size, head_size); a position's slot is
``page * page_size + position % page_size``. All rows of a layer are written before any is read, so rows
may read what other runs of the same step write.

What to read is said once a step, as groups of equal shape, and used by every layer with the same window.
A long run is cut into pieces of rows, so that no tensor of scores grows with the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

I64 = npt.NDArray[np.int64]

SCRATCH_BYTES = 64 << 20
"""The scores of a piece are no larger, unless one row of one run alone needs more."""
GROUP_BYTES = 8 << 20
"""Pieces share a group while each of its tensors is at most this: what was gathered is still in the
processor's cache when it is used, and the memory is taken from the heap, not mapped anew each time."""
PIECE_ROWS = 256
"""Rows of one run that are scored together: fewer waste less on masked keys, more make better products."""
PADDING, FREE_PADDING = 1.25, 64
"""Pieces share a group while the longest is at most so many times, and so many slots, above the shortest."""


@dataclass(frozen=True, slots=True)
class Group:
    """N pieces of r rows each, reading up to L = P * page_size slots each.

    rows: (N * r,), int64, row indices; piece after piece. pages: (N * P,), int64.
    hidden: (N, 1, r, L), bool, true where the row must not see the slot.
    padding: slots among the N * L gathered that belong to no position of the piece, int64.
    """

    pieces: int
    rows: Tensor
    pages: Tensor
    hidden: Tensor
    padding: Tensor


def group_reads(
    first_row: I64,
    rows: I64,
    start: I64,
    first_page: I64,
    pages: I64,
    *,
    page_size: int,
    heads: int,
    kv_width: int,
    window: int | None,
    device: torch.device,
) -> list[Group]:
    """What the rows of a step read, for all layers with this window.

    Args:
        first_row, rows, start, first_page: (N,), for each run: its first row, its rows, the position of
            the first, and where its page ids begin in ``pages``.
        heads: query heads. kv_width: kv_heads * head_size. They bound the scratch of a group.
        window: a row sees itself and the ``window - 1`` positions before it; None is all.
    """
    run, done, taken = _cut(rows, start, heads, window)
    begin = start[run] + done
    # Pages before the first visible slot are not read at all.
    first = np.zeros_like(begin) if window is None else np.maximum(0, begin - window + 1) // page_size
    base = first * page_size
    length = begin + taken - base
    order = np.lexsort((length, taken))
    columns = [first_row[run] + done, taken, begin, base, length, first_page[run] + first]
    table = np.stack(columns, axis=1)[order]
    groups, start_at = [], 0
    for end in _borders(table[:, 1].tolist(), table[:, 4].tolist(), heads, kv_width):
        groups.append(_group(table[start_at:end], pages, page_size, window, device))
        start_at = end
    return groups


def attend(query: Tensor, keys: Tensor, values: Tensor, groups: list[Group], scale: float) -> Tensor:
    """softmax(query . key * scale) . value for every row, in float32.

    Args:
        query: (R, heads, head_size). keys, values: (kv_heads, pages, page_size, head_size).

    Returns:
        (R, heads * head_size), the type of ``query``.
    """
    total, heads, size = query.shape
    kv_heads = keys.shape[0]
    share = heads // kv_heads
    output = torch.empty(total, heads * size, dtype=query.dtype, device=query.device)
    for group in groups:
        count = group.pieces
        asked = query.index_select(0, group.rows).view(count, -1, kv_heads, share, size)
        rows = asked.shape[1]
        # (kv_heads * N, share * r, size): the query heads of one kv head are more rows of one product.
        asked = asked.permute(2, 0, 3, 1, 4).reshape(kv_heads * count, share * rows, size).float() * scale
        key = _gather(keys, group, clear=False)
        scores = torch.bmm(asked, key.transpose(1, 2)).view(kv_heads, count, share, rows, -1)
        scores.masked_fill_(group.hidden, float("-inf"))
        weights = torch.softmax(scores, dim=-1).view(kv_heads * count, share * rows, -1)
        mixed = torch.bmm(weights, _gather(values, group, clear=True))
        mixed = mixed.view(kv_heads, count, share, rows, size).permute(1, 3, 0, 2, 4)
        output.index_copy_(0, group.rows, mixed.reshape(count * rows, heads * size).to(query.dtype))
    return output


def write(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Put ``rows`` (R, kv_heads, head_size) into ``slots`` (R,) of a layer's K or V."""
    kv_heads, _, _, size = cache.shape
    cache.view(kv_heads, -1, size).index_copy_(1, slots, rows.transpose(0, 1).to(cache.dtype))


def _gather(cache: Tensor, group: Group, *, clear: bool) -> Tensor:
    """The pages of a group side by side, (kv_heads * N, L, head_size), float32.

    ``clear`` zeroes slots that belong to no position: a weight of nothing times a value that is not a
    number would still not be a number.
    """
    kv_heads, _, _, size = cache.shape
    found = cache.index_select(1, group.pages).view(kv_heads, -1, size)
    if clear:
        found.index_fill_(1, group.padding, 0)
    return found.view(kv_heads * group.pieces, -1, size).float()


def _cut(rows: I64, start: I64, heads: int, window: int | None) -> tuple[I64, I64, I64]:
    """Runs cut into pieces: for each piece its run, the rows of the run before it, and its own rows."""
    seen = start + rows if window is None else np.minimum(start + rows, window + PIECE_ROWS)
    size = np.clip(SCRATCH_BYTES // (4 * heads * seen), 1, PIECE_ROWS)
    count = -(-rows // size)
    run = np.repeat(np.arange(len(rows)), count)
    number = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
    done = number * size[run]
    return run, done, np.minimum(size[run], rows[run] - done)


def _borders(rows: list[int], lengths: list[int], heads: int, kv_width: int) -> Iterator[int]:
    """Where groups end in pieces sorted by (rows, length)."""
    begin = 0
    for index in range(1, len(rows)):
        scratch = 4 * (index + 1 - begin) * lengths[index] * max(heads * rows[index], kv_width)
        if (
            rows[index] != rows[begin]
            or lengths[index] > max(PADDING * lengths[begin], lengths[begin] + FREE_PADDING)
            or scratch > GROUP_BYTES
        ):
            yield index
            begin = index
    if rows:
        yield len(rows)


def _group(table: I64, pages: I64, page_size: int, window: int | None, device: torch.device) -> Group:
    """One group of the pieces in ``table``, all with equal row counts (columns as in ``group_reads``)."""
    first_row, taken, begin, base, length, first_page = table.T
    rows = np.arange(taken[0])
    own = -(-length // page_size)
    count = int(own.max())
    # A piece with fewer pages repeats its last one; those slots are padding.
    reference = first_page[:, None] + np.minimum(np.arange(count), own[:, None] - 1)
    slots = np.arange(count * page_size)
    position = (begin - base)[:, None] + rows
    hidden = slots > position[:, :, None]
    if window is not None:
        hidden |= slots <= position[:, :, None] - window
    padding = np.flatnonzero(slots >= length[:, None])
    return Group(
        pieces=len(table),
        rows=torch.from_numpy((first_row[:, None] + rows).reshape(-1)).to(device),
        pages=torch.from_numpy(pages[reference].reshape(-1)).to(device),
        hidden=torch.from_numpy(hidden[:, None]).to(device),
        padding=torch.from_numpy(padding).to(device),
    )
