"""Attention reads what sequences share once for all of them, at any depth, and the bits stay the same.

Juravsky et al. 2024, "Hydragen: High-Throughput LLM Inference with Shared Prefixes", ICML 2024, arXiv
2402.05099. Decode steps of the compiled operator: 8 query heads, 1 or 8 heads of K and V of size 64, float32
and bfloat16. The kernel itself counts the positions whose K and V it reads.

- *Exactness.* Trees of the published tests and their sizes, against softmax(q k) v in double; every sequence
  alone against the batch, and with nothing shared, bit by bit.
- *Operator.* 1 to 64 sequences, prefixes of 128 to 4096 tokens, 16 or 128 tokens of their own. What is read
  is the prefix once and everybody's own tokens. Time against torch's operator, one sequence after the other
  over the prefix stored once, or all at once over copies of it, as one operator or as its products; that the
  gain grows is judged against whichever of these is fastest at a size, so that growth is not a matter of
  calls or of idle threads. And against the same kernel with sharing unseen, which differs where memory, not
  arithmetic, is the limit: with as many heads of K and V as of queries.
- *Tree.* 4 problems of 256 tokens with 8 samples each under one prompt of 1024: both levels shared, the
  prompt alone, nothing.
- *Engine.* 32 answers to one prompt, then to one of eight times its length: sharing seen, unseen, and no
  attention at all. Gains are bounded by arithmetic here: a processor's cache makes it cheap to read a prefix
  again.
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shoal.core.errors import OperatorError
from shoal.engine import machine
from shoal.experiments import completions
from shoal.experiments.benches import median
from shoal.experiments.claims import Findings, Trial
from shoal.experiments.prefixes import Tree, in_turn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (((7, 7), (9, 10, 11, 4), (129, 2, 3, 4, 5, 6, 7, 128)), ((16384,), (1, 128, 256)))
"""Trees of the published implementation's tests."""
BATCHES, PREFIXES, OWN = (1, 4, 16, 64), (128, 1024, 4096), (16, 128)
FLOAT, HALF = "float32", "bfloat16"
SHARED, UNSEEN = "shared", "sharing unseen"
EACH, COPIES, PRODUCTS = TORCH = "torch, one by one", "torch, copies", "torch, copies, products"
ROUNDS = 15
TABLE = "Microseconds of a step's attention here, {} threads"


class Cell(NamedTuple):
    """One size of the operator."""

    dtype: str
    kv_heads: int
    prefix: int
    own: int
    batch: int

    @property
    def tree(self) -> Tree:
        return Tree(((self.prefix,), (self.own,) * self.batch))


Reads = dict[Cell, dict[str, int]]
Seconds = dict[Cell, dict[str, float]]


def run(trial: Trial, findings: Findings) -> None:
    if not machine.compiled():
        raise OperatorError(
            "the compiled kernels were not built", remedy="install shoal where there is a C++ compiler"
        )
    machine.calm_threads()
    from shoal.experiments.tensors.attention import compute_on

    threads = compute_on(machine.threads()[0])
    _exactness(trial, threads, findings)
    reads, seconds = _operator(trial, threads, findings)
    _tree(trial, threads, findings)
    with tempfile.TemporaryDirectory() as folder:
        completions.counted(Path(folder), trial, findings)
        if not trial.quick:
            completions.clocked(Path(folder), trial, findings)
    findings.picture(lambda figure: _draw(figure, reads, seconds))


def _exactness(trial: Trial, threads: int, findings: Findings) -> None:
    from shoal.experiments.tensors.attention import Compiled, Drawn, Shape, differing

    furthest = {FLOAT: 0.0, HALF: 0.0}
    relative, rows, other_bits = 0.0, 0, 0
    trees = (*LEVELS[:1], ((1024,), (1, 128, 256))) if trial.quick else LEVELS
    for levels, dtype, kv_heads in product(trees, (FLOAT, HALF), (1, 8)):
        tree = Tree(levels)
        findings.progress(f"exactness: {dtype}, {kv_heads} heads of K and V, {levels[0]}")
        drawn = Drawn(tree, Shape(dtype, kv_heads=kv_heads), trial.seed)
        # Nodes of a few tokens are on pages of one.
        size = 16 if tree.length(0) > 1000 else 1
        together = Compiled(drawn, threads, len(levels) - 1, page_size=size)
        found, wanted = together(), drawn.exact()
        apart = (found - wanted).abs()
        furthest[dtype] = max(furthest[dtype], float(apart.max()))
        if dtype == HALF:
            relative = max(relative, float(apart.mean() / wanted.abs().mean()))
        others = [Compiled(drawn, threads, 0, page_size=size)()]
        others += [
            Compiled(drawn, count, 1, share=False, page_size=size, like=together)() for count in (1, 3)
        ]
        other_bits += sum(differing(found, other) for other in others)
        other_bits += sum(differing(found[i : i + 1], together.alone(i)) for i in range(tree.count))
        rows += (len(others) + 1) * tree.count
    findings.counted("float32: furthest from attention in double", furthest[FLOAT], "<=", 1e-5)
    findings.counted("bfloat16: furthest from attention in double", furthest[HALF], "<=", 2e-3)
    findings.counted("bfloat16: mean distance over mean output", relative, "<=", 5e-3)
    name = "rows with other bits alone, without sharing, on 1 or 3 threads"
    findings.counted(name, other_bits, "==", 0)
    findings.counted("rows compared, so that it means something", rows, ">=", 100)


def _operator(trial: Trial, threads: int, findings: Findings) -> tuple[Reads, Seconds]:
    from shoal.experiments.tensors.attention import Compiled, Drawn, Shape, Torch

    cells = [Cell(*each) for each in product((FLOAT, HALF), (1, 8), PREFIXES, OWN, BATCHES)]
    if trial.quick:
        cells = [Cell(*each) for each in product((HALF,), (1, 8), PREFIXES[:2], OWN[:1], BATCHES)]
    reads: Reads = {}
    seconds: Seconds = {}
    for cell in cells:
        findings.progress(f"operator: {cell.dtype}, {cell.kv_heads}, {cell.batch} x {cell.prefix}+{cell.own}")
        drawn = Drawn(cell.tree, Shape(cell.dtype, kv_heads=cell.kv_heads), trial.seed)
        shared = Compiled(drawn, threads, 1)
        unseen = Compiled(drawn, threads, 1, share=False, like=shared)
        reads[cell] = {SHARED: shared.reads(), UNSEEN: unseen.reads()}
        if not trial.quick:
            torch = Torch(drawn)
            copies = torch.replicated()
            baselines = dict(zip(TORCH, (torch.each, copies, copies.by_products), strict=True))
            seconds[cell] = in_turn({SHARED: shared, UNSEEN: unseen, **baselines}, ROUNDS)
    wrong = sum(found[SHARED] != cell.prefix + cell.batch * cell.own for cell, found in reads.items())
    name = f"sizes, of {len(cells)}, where more or less is read than the prefix once and all own tokens"
    findings.counted(name, wrong, "==", 0)
    most = max(cell.batch for cell in cells)
    prefix = {cell: found[SHARED] - cell.batch * cell.own for cell, found in reads.items()}
    more = max(prefix[cell] / prefix[cell._replace(batch=1)] for cell in cells if cell.batch == most)
    findings.counted(f"prefix read for {most} sequences over prefix read for 1", more, "==", 1, unit="x")
    if seconds:
        _speed(seconds, threads, findings)
    return reads, seconds


def _speed(seconds: Seconds, threads: int, findings: Findings) -> None:
    def ratio(cell: Cell, name: str) -> float:
        return seconds[cell][name] / seconds[cell][SHARED]

    def gain(cell: Cell) -> float:
        return min(ratio(cell, name) for name in TORCH)

    last = [
        cell for cell in seconds if (cell.prefix, cell.own, cell.batch) == (PREFIXES[-1], OWN[0], BATCHES[-1])
    ]
    for name in (EACH, COPIES):
        least = min(ratio(cell, name) for cell in last)
        findings.clocked(f"{BATCHES[-1]} x {PREFIXES[-1]}: time of {name}, at least", least, ">", 2, unit="x")
    for cell in last:
        where = f"{cell.dtype}, {cell.kv_heads} heads of K and V: gain over torch's fastest"
        for word, smaller in (
            (f"{BATCHES[-1]} sequences, more than 1", cell._replace(batch=BATCHES[0])),
            (f"prefix of {PREFIXES[-1]}, more than {PREFIXES[0]}", cell._replace(prefix=PREFIXES[0])),
        ):
            before = gain(smaller)
            findings.clocked(f"{where}, {word}", gain(cell), ">", before, unit="x", baseline=before)
    wide = min(ratio(cell, UNSEEN) for cell in last if cell.kv_heads == 8)
    name = f"{BATCHES[-1]} x {PREFIXES[-1]}, 8 heads of K and V: time with {UNSEEN}, at least"
    findings.clocked(name, wide, ">", 1.5, unit="x")
    one = [ratio(cell, UNSEEN) for cell in seconds if cell.batch == 1 and cell.prefix == PREFIXES[-1]]
    name = f"1 x {PREFIXES[-1]}: time with {UNSEEN}, median of sizes"
    findings.clocked(name, median(one), "<=", 1.25, unit="x")
    columns = ("type", "heads of K and V", "prefix", "own", "sequences", *next(iter(seconds.values())))
    rows = [(*cell, *(1e6 * each for each in found.values())) for cell, found in seconds.items()]
    findings.table(TABLE.format(threads), columns, rows)


def _tree(trial: Trial, threads: int, findings: Findings) -> None:
    from shoal.experiments.tensors.attention import Compiled, Drawn, Shape, differing

    tree = Tree(((1024,), (256,) * 4, (16,) * 32))
    drawn = Drawn(tree, Shape(HALF), trial.seed)
    findings.progress("tree of prefixes")
    ways = {f"{levels} levels shared": Compiled(drawn, threads, levels) for levels in (2, 1, 0)}
    reads = {name: way.reads() for name, way in ways.items()}
    two, one, flat = reads.values()
    wrong = sum(sum(tree.reads(levels)) != read for levels, read in zip((2, 1, 0), reads.values()))
    findings.counted("tree: ways that read more or less than their nodes once", wrong, "==", 0)
    name = "tree: positions read, two levels less than one"
    findings.counted(name, two, "<", one, unit="positions", baseline=one)
    name = "tree: positions read, one level less than none"
    findings.counted(name, one, "<", flat, unit="positions", baseline=flat)
    results = [way() for way in ways.values()]
    findings.counted("tree: rows with other bits", sum(differing(results[0], r) for r in results), "==", 0)
    seconds = {} if trial.quick else in_turn(ways, ROUNDS)
    if seconds:
        fast, slower, slowest = seconds.values()
        findings.clocked("tree: time, one level over two", slower / fast, ">", 1, unit="x")
        findings.clocked("tree: time, none over one level", slowest / slower, ">", 1, unit="x")
    findings.table(
        "32 sequences: 1024 tokens for all, 256 for each eight, 16 of their own; 8 heads of K and V, bf16",
        ("way", "positions read a head", "microseconds"),
        [(name, read, 1e6 * seconds[name] if seconds else "not timed") for name, read in reads.items()],
    )


def _draw(figure: Figure, reads: Reads, seconds: Seconds) -> None:
    left, *right = figure.subplots(1, 3 if seconds else 1, squeeze=False)[0]
    largest = max(reads)._replace(dtype=HALF, kv_heads=8, own=OWN[0])

    def curve(prefix: int) -> list[Cell]:
        return [largest._replace(prefix=prefix, batch=batch) for batch in BATCHES]

    for name in (SHARED, UNSEEN):
        left.plot(BATCHES, [reads[cell][name] for cell in curve(largest.prefix)], "o-", label=name)
    left.set(
        xscale="log", yscale="log", xlabel="sequences", ylabel=f"positions read, prefix {largest.prefix}"
    )
    left.legend()
    for axes, name in zip(right, (EACH, UNSEEN)):
        for prefix in PREFIXES:
            gain = [seconds[cell][name] / seconds[cell][SHARED] for cell in curve(prefix)]
            axes.plot(BATCHES, gain, "o-", label=f"prefix {prefix}")
        axes.set(xscale="log", yscale="log", xlabel="sequences", ylabel=f"gain over {name}")
        axes.legend()
