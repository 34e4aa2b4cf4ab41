"""Random jobs full of shared beginnings, and the plain twins of what a plan says of them."""

from __future__ import annotations

import numpy as np

from shoal.core.policy import ForestView
from shoal.reuse.forest import forest_of
from shoal.reuse.hashes import PageHashes


def random_prompts(rng, rows: int, page_size: int = 4) -> list[list[int]]:
    """Many prompts begin with an earlier one, in whole or in part; some are equal to one."""
    prompts: list[list[int]] = []
    for _ in range(rows):
        prompt: list[int] = []
        if prompts and rng.random() < 0.8:
            base = prompts[rng.integers(len(prompts))]
            prompt = base[: rng.integers(0, len(base) + 1)] if rng.random() < 0.7 else base[:]
        if not prompt or rng.random() < 0.7:
            prompt = prompt + rng.integers(0, 50, rng.integers(1, 3 * page_size)).tolist()
        prompts.append(prompt)
    return prompts


def forest(prompts, page_size: int = 4, answer=None, copies=None, blind=None) -> ForestView:
    hashes = PageHashes(page_size)
    lengths = np.array([len(p) for p in prompts], dtype=np.int32)
    hashes.add(np.array([t for p in prompts for t in p], dtype=np.int32), lengths)
    m = len(prompts)
    return forest_of(
        hashes,
        lengths,
        np.ones(m, dtype=np.int32) if answer is None else np.asarray(answer),
        np.ones(m, dtype=np.int32) if copies is None else np.asarray(copies),
        np.zeros(m, dtype=bool) if blind is None else np.asarray(blind),
    )


def random_job(rng, rows: int, page_size: int = 4, blind: bool = True):
    """(prompts, forest) with answers, copies and blind rows."""
    prompts = random_prompts(rng, rows, page_size)
    copies = np.where(rng.random(rows) < 0.2, rng.integers(1, 4, rows), 1)
    view = forest(
        prompts,
        page_size,
        answer=rng.integers(1, 30, rows),
        copies=copies,
        blind=(rng.random(rows) < 0.1) & blind,
    )
    return prompts, view


def nodes_of(prompts, copies, page_size: int) -> set[tuple[int, frozenset[int], int]]:
    """{(depth in tokens, rows, requests)} by the definition: for every set of rows that share a page, the
    deepest page that all of it shares."""
    readers: dict[tuple[int, ...], set[int]] = {}
    for row, prompt in enumerate(prompts):
        for end in range(page_size, len(prompt) + 1, page_size):
            readers.setdefault(tuple(prompt[:end]), set()).add(row)
    deepest: dict[frozenset[int], int] = {}
    for beginning, rows in readers.items():
        if sum(copies[row] for row in rows) > 1:
            key = frozenset(rows)
            deepest[key] = max(deepest.get(key, 0), len(beginning))
    return {(depth, rows, sum(int(copies[r]) for r in rows)) for rows, depth in deepest.items()}


def computed_tokens(plan, prompts, view: ForestView) -> tuple[list[int], int]:
    """What a cache that keeps everything makes of a plan, request by request: (per row, total)."""
    size, cache = view.page_size, set()
    first: dict[int, int] = {}
    total = 0
    for row in plan.order.tolist():
        prompt, domain = prompts[row], plan.domain(row)
        limit = plan.shared(row)
        limit = len(prompt) if limit is None else limit
        for _ in range(int(view.copies[row])):
            read = 0
            while (
                read + size <= min(limit, int(view.readable[row]))
                and (domain, *prompt[: read + size]) in cache
            ):
                read += size
            for end in range(size, min(limit, len(prompt)) + 1, size):
                cache.add((domain, *prompt[:end]))
            first.setdefault(row, len(prompt) - read)
            total += len(prompt) - read
    return [first[row] for row in range(len(prompts))], total
