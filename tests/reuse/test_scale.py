"""A large job is planned in seconds and without its ids in memory."""

from __future__ import annotations

import subprocess
import sys

from tests.sizes import size

PROGRAM = """
import sys, time
import numpy as np
from shoal.core.policies import make
from shoal.reuse.forest import forest_of
from shoal.reuse.hashes import PageHashes
from shoal.reuse.planning import make_plan

def most():
    # Of this program alone: ru_maxrss would begin at what its parent had.
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024

rows, prefixes, length = (int(x) for x in sys.argv[1:])
rng = np.random.default_rng(0)
instructions = rng.integers(0, 32000, (prefixes // 100, 160), dtype=np.int32)
documents = rng.integers(0, 32000, (prefixes, 160), dtype=np.int32)
hashes, clock, start = PageHashes(16), {"hash": 0.0}, 0.0
for first in range(0, rows, 5000):
    chosen = rng.integers(0, prefixes, min(5000, rows - first))
    own = rng.integers(0, 32000, (len(chosen), length - 320), dtype=np.int32)
    ids = np.concatenate([instructions[chosen % len(instructions)], documents[chosen], own], axis=1).ravel()
    start = time.perf_counter()
    hashes.add(ids, np.full(len(chosen), length, dtype=np.int32))
    clock["hash"] += time.perf_counter() - start
before = most()
start = time.perf_counter()
ones = np.ones(rows, dtype=np.int32)
forest = forest_of(hashes, ones * length, rng.integers(1, 99, rows), ones, np.zeros(rows, dtype=bool))
clock["forest"] = time.perf_counter() - start
for seam, name in (("reuse", "forest"), ("policy", "batchllm")):
    start = time.perf_counter()
    plan = make_plan(make(seam, name), forest)
    clock[f"plan {name}"] = time.perf_counter() - start
    print(name, plan.total)
peak = most()
print(len(forest.parent), peak, peak - before)
print(", ".join(f"{what} {seconds:.1f} s" for what, seconds in clock.items()))
"""


def test_two_levels_of_prefixes_in_random_order(figure):
    rows, prefixes, length = size((20_000, 400, 500), (1_000_000, 10_000, 500))
    command = [sys.executable, "-c", PROGRAM, *map(str, (rows, prefixes, length))]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280).stdout.splitlines()
    nodes, peak, more = (int(x) for x in out[2].split())
    instructions = prefixes // 100
    assert nodes == instructions + prefixes
    assert out[0] == f"forest {instructions * 160 + prefixes * 160 + rows * (length - 320)}"
    assert out[1] == f"batchllm {prefixes * 320 + rows * (length - 320)}"
    hashed = rows * (length // 16) * 8 / 2**20
    assert peak < 200 + 1.2 * hashed + 300e-6 * rows, "megabytes in all"
    figure(f"{rows:,} rows of {length} ids: {out[3]}; peak {peak} MB, {more} of them for forest and plans")
