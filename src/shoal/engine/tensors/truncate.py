"""Which tokens top-k, top-p and min-p leave: a pure function of each row.

All three keep a prefix of the order "larger logit first, then lower id", so a row's answer is one count
and one threshold. A whole vocabulary is sorted only where top-p reaches far past ``PREFIX`` tokens.
"""

from __future__ import annotations

import torch

PREFIX = 1024
"""Best tokens looked at first; a row whose top-p reaches further looks at 16 times as many, and so on."""


def _counts(
    best: torch.Tensor, total: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Tokens kept by top-k and top-p for rows of descending scaled logits ``best``, shape (n, width).

    ``total`` is the sum of the exponentials of the whole row, or NaN where top-k leaves less than the
    whole row. Where the width does not suffice the count comes out as width + 1.
    """
    width = best.shape[1]
    mass = best.to(torch.float64).exp().cumsum(dim=1)
    at_k = mass.gather(1, (top_k.clamp(max=width) - 1)[:, None])
    whole = torch.where(total.isnan()[:, None], at_k, total.to(torch.float64)[:, None])
    wanted = whole * top_p.to(torch.float64)[:, None]
    count = (mass < wanted).sum(dim=1) + 1
    count = torch.where(top_p < 1.0, count, top_k)
    return torch.minimum(torch.minimum(count, top_k), torch.full_like(count, width + 1))


def _threshold(
    scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest kept value of each row, and how many tokens of just that value are kept."""
    vocabulary = scaled.shape[1]
    best = torch.topk(scaled, width, dim=1).values
    total = torch.full_like(top_p, torch.nan)
    whole = (top_p < 1.0) & (top_k == vocabulary)
    if bool(whole.any()):
        # softmax adds each row in one fixed order; the best scaled logit is 0, so its share is 1 / total.
        total = torch.where(whole, 1.0 / torch.softmax(scaled, dim=1).amax(dim=1), total)
    count = _counts(best, total, top_k, top_p)
    if width == vocabulary:
        count.clamp_(max=vocabulary)
    inside = count.clamp(max=width)
    threshold = best.gather(1, (inside - 1)[:, None])[:, 0]
    ties = inside - (best > threshold[:, None]).sum(dim=1)
    outside = (count > width) & (top_p < 1.0)
    if bool(outside.any()):
        rows = torch.nonzero(outside)[:, 0]
        threshold[rows], ties[rows] = _threshold(
            scaled[rows], top_k[rows], top_p[rows], min(vocabulary, 16 * width)
        )
    everything = (count > width) & (top_p >= 1.0)
    threshold[everything] = -torch.inf
    ties[everything] = vocabulary
    return threshold, ties


def candidates(
    scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens left in each row.

    top-k keeps the k best; top-p then keeps the smallest set of best tokens whose share of what top-k
    left reaches ``top_p`` (the token that crosses it is kept); min-p keeps tokens at least ``min_p``
    times as probable as the best. Equal logits are kept lowest id first.

    Args:
        scaled: shape (n, V), float32, logits over temperature, less the row's largest (so that is 0).
        top_k: shape (n,), int64, 1..V; V keeps all. top_p, min_p: shape (n,), float32.

    Returns:
        ids (n, m) int32 ascending, and their values (n, m); m is the most any row keeps, shorter rows
        are padded with id 0 and value -inf.
    """
    vocabulary = scaled.shape[1]
    finite = torch.where(top_k < vocabulary, top_k, torch.zeros_like(top_k))
    width = int(finite.max())
    if bool((top_p < 1.0).any()):
        width = max(width, PREFIX)
    floor = min_p.log()
    if width:
        threshold, ties = _threshold(scaled, top_k, top_p, min(width, vocabulary))
        ties = torch.where(floor > threshold, vocabulary, ties)
        floor = torch.maximum(floor, threshold)
    else:
        ties = torch.full_like(top_k, vocabulary)
    row, ids = torch.nonzero((scaled >= floor[:, None]) & (scaled > -torch.inf), as_tuple=True)
    values = scaled[row, ids]
    tied = values == floor[row]
    kept = ~tied | (_place_in_row(row, tied.long(), len(scaled)) < ties[row])
    return _padded(row[kept], ids[kept], values[kept], len(scaled))


def _place_in_row(row: torch.Tensor, weight: torch.Tensor, rows: int) -> torch.Tensor:
    """For sorted ``row`` indices: the sum of ``weight`` over the earlier entries of the same row."""
    before = weight.cumsum(0) - weight
    per_row = torch.zeros(rows, dtype=torch.int64, device=row.device).index_add_(0, row, weight)
    return before - (per_row.cumsum(0) - per_row)[row]


def _padded(
    row: torch.Tensor, ids: torch.Tensor, values: torch.Tensor, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    place = _place_in_row(row, torch.ones_like(row), rows)
    width = int(place.max()) + 1 if len(place) else 1
    out_ids = torch.zeros((rows, width), dtype=torch.int32, device=values.device)
    out_values = torch.full((rows, width), -torch.inf, device=values.device)
    out_ids[row, place] = ids.to(torch.int32)
    out_values[row, place] = values
    return out_ids, out_values
