"""Attention over pages in plain torch: the twin that every faster kernel must equal.

A layer's K and V are each (kv_heads, pages, page_size, head_size); a position's slot is
``page * page_size + position % page_size``. All rows of a layer are written before any is read, so rows
may read what other runs of the same step write.

What to read is said once a step, as groups of equal shape, and used by every layer with the same window.
A long run is cut into pieces of rows, so that no tensor of scores grows with the prompt. Where pages are as
long as sequences, pieces on neighbouring pages are read where they lie; others are gathered first.
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
LONG_PAGE = 128
"""Pages of at least so many slots are read where they lie, if every piece has but one."""
PLACE_PADDING, FREE_PLACE_PADDING = 1.5, 256
"""Neighbours share a group while it reads at most so many times, or so many slots above, what they need."""
ALIGNED = 16
"""A part of a page that is read begins and ends at multiples of this."""


@dataclass(frozen=True, slots=True)
class Group:
    """N pieces of r rows each, reading L slots each: P whole pages, or with P = 1 a part of one.

    rows: (N * r,), int64, row indices; piece after piece. pages: (N * P,), int64.
    part: the slots read of each page, in all L / P.
    place: pages are ``place .. place + N - 1`` and may be read where they lie; None if not.
    hidden: (N, 1, r, L), bool, true where the row must not see the slot.
    padding: slots among the N * L gathered that belong to no position of the piece, int64.
    """

    pieces: int
    rows: Tensor
    pages: Tensor
    part: slice
    place: int | None
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
    columns = [first_row[run] + done, taken, begin, base, length, first_page[run] + first]
    # Elsewhere the look at the result that reading in place needs would wait for the device.
    in_place = page_size >= LONG_PAGE and device.type == "cpu" and bool(np.all(length <= page_size))
    if in_place:
        place = pages[columns[5]]
        order = np.lexsort((begin, place, taken))
        ends = _place_borders(taken[order].tolist(), length[order].tolist(), place[order].tolist(), heads)
    else:
        order = np.lexsort((length, taken))
        ends = _borders(taken[order].tolist(), length[order].tolist(), heads, kv_width)
    table = np.stack(columns, axis=1)[order]
    groups, start_at = [], 0
    for end in ends:
        groups.append(_group(table[start_at:end], pages, page_size, window, device, in_place))
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
        # (kv_heads, N, share * r, size): the query heads of one kv head are more rows of one product.
        asked = asked.permute(2, 0, 3, 1, 4).reshape(kv_heads, count, share * rows, size).float() * scale
        scores = _products(asked, _read(keys, group).transpose(2, 3)).view(kv_heads, count, share, rows, -1)
        scores.masked_fill_(group.hidden, float("-inf"))
        weights = torch.softmax(scores, dim=-1).view(kv_heads, count, share * rows, -1)
        mixed = _mix(weights, values, group)
        mixed = mixed.view(kv_heads, count, share, rows, size).permute(1, 3, 0, 2, 4)
        output.index_copy_(0, group.rows, mixed.reshape(count * rows, heads * size).to(query.dtype))
    return output


def write(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    """Put ``rows`` (R, kv_heads, head_size) into ``slots`` (R,) of a layer's K or V."""
    kv_heads, _, _, size = cache.shape
    cache.view(kv_heads, -1, size).index_copy_(1, slots, rows.transpose(0, 1).to(cache.dtype))


def _mix(weights: Tensor, values: Tensor, group: Group) -> Tensor:
    """weights . values, (kv_heads, N, rows, head_size).

    Slots that belong to no position have no weight, but nothing times a value that is not a number would
    still not be a number. Gathered, they are zeroed; in place they are whatever was there before, and where
    it shows in the result the group is gathered after all.
    """
    if group.place is not None:
        mixed = _products(weights, _read(values, group))
        if not mixed.sum().isnan():
            return mixed
    gathered = _gather(values, group)
    gathered.view(gathered.shape[0], -1, gathered.shape[3]).index_fill_(1, group.padding, 0)
    return _products(weights, gathered.float())


def _read(cache: Tensor, group: Group) -> Tensor:
    """What a group reads, (kv_heads, N, L, head_size), float32; the cache itself where that can be."""
    if group.place is None:
        return _gather(cache, group).float()
    return cache[:, group.place : group.place + group.pieces, group.part].float()


def _gather(cache: Tensor, group: Group) -> Tensor:
    """The pages of a group side by side, a copy (kv_heads, N, L, head_size) of the cache's type."""
    kv_heads, _, _, size = cache.shape
    return cache[:, :, group.part].index_select(1, group.pages).view(kv_heads, group.pieces, -1, size)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(A, B, n, k) times (A, B, k, m), each pair by itself, without copying either."""
    outer, inner = right.shape[:2]
    if min(outer, inner) == 1 or right.stride(0) == inner * right.stride(1):
        return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).view(outer, inner, left.shape[2], -1)
    # A view of some pages has no one stride over heads and pages.
    result = left.new_empty(*left.shape[:3], right.shape[3])
    axis = 0 if outer <= inner else 1
    for a, b, product in zip(left.unbind(axis), right.unbind(axis), result.unbind(axis)):
        torch.bmm(a, b, out=product)
    return result


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


def _place_borders(rows: list[int], lengths: list[int], places: list[int], heads: int) -> Iterator[int]:
    """Where groups end in pieces of a page each, sorted by (rows, page): after the last neighbour, and where
    one group would read too much that is not needed."""
    begin, longest, needed = 0, 0, 0
    for index, length in enumerate(lengths):
        count = index + 1 - begin
        needed += length
        longest = max(longest, length)
        if index > begin and (
            rows[index] != rows[begin]
            or places[index] != places[index - 1] + 1
            or count * longest > max(PLACE_PADDING * needed, needed + FREE_PLACE_PADDING)
            or 4 * count * longest * heads * rows[index] > GROUP_BYTES
        ):
            yield index
            begin, longest, needed = index, length, length
    if rows:
        yield len(rows)


def _group(
    table: I64, pages: I64, page_size: int, window: int | None, device: torch.device, in_place: bool
) -> Group:
    """One group of the pieces in ``table``, all with equal row counts (columns as in ``group_reads``)."""
    first_row, taken, begin, base, length, first_page = table.T
    rows = np.arange(taken[0])
    own = -(-length // page_size)
    count = int(own.max())
    # A piece with fewer pages repeats its last one; those slots are padding.
    reference = first_page[:, None] + np.minimum(np.arange(count), own[:, None] - 1)
    part = _part(begin - base, length, page_size, window) if count == 1 else slice(0, page_size)
    slots = np.arange(part.start, count * page_size if count > 1 else part.stop)
    position = (begin - base)[:, None] + rows
    hidden = slots > position[:, :, None]
    if window is not None:
        hidden |= slots <= position[:, :, None] - window
    padding = np.flatnonzero(slots >= length[:, None])
    return Group(
        pieces=len(table),
        rows=torch.from_numpy((first_row[:, None] + rows).reshape(-1)).to(device),
        pages=torch.from_numpy(pages[reference].reshape(-1)).to(device),
        part=part,
        place=int(pages[reference[0, 0]]) if in_place else None,
        hidden=torch.from_numpy(hidden[:, None]).to(device),
        padding=torch.from_numpy(padding).to(device),
    )


def _part(begin: I64, length: I64, page_size: int, window: int | None) -> slice:
    """The slots of a page that pieces of one page each read, from the first that any sees to the last;
    ``begin`` is where in its page a piece has its first row."""
    low = 0 if window is None else max(0, int(begin.min()) - window + 1)
    high = -(-int(length.max()) // ALIGNED) * ALIGNED
    return slice(low // ALIGNED * ALIGNED, min(page_size, high))
