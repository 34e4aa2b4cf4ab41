"""How well a run is foretold: calibrate, rehearse, run, and compare, several times over.

    python benchmarks/predict.py [--jobs demo,shared,mixed] [--repeat 3] [--quick] [--steps]

``demo`` is the job of ``make demo``, by its own commands; the others are those of ``shoal bench`` on
llama135m with random weights, under default policies. Each repeat measures the machine anew. ``--steps``
shows where measured and predicted seconds of steps part. The last line is the result as JSON; the exit code
is 0 if each job's median ratio of predicted to measured is within ``--within`` of 1, and computed tokens are
those foretold every time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.demo import command
from shoal.bench.jobs import JOBS, LLAMA_135M, Job
from shoal.bench.measure import POOL, requests
from shoal.core.config import EngineConfig
from shoal.core.cost import StepShape, shape_of
from shoal.core.request import Request
from shoal.engine.build import prepare, start
from shoal.engine.calibrate import BUDGET
from shoal.engine.costs import measure, with_cost
from shoal.engine.dry_run import predict
from shoal.engine.engine import Engine

ROOT = Path(__file__).resolve().parent.parent
Clock = Callable[[], float]
DEMO = "demo"
TIMED = (DEMO, "shared", "mixed")


class Watched:
    """Times every step of an engine's executor."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.steps: list[tuple[StepShape, float]] = []
        submit = engine.executor.submit

        def timed(plan: Any) -> None:
            begin = clock()
            submit(plan)
            self.steps.append((shape_of(plan), clock() - begin))

        engine.executor.submit = timed  # type: ignore[method-assign]


def compare(job: Job, folder: str, options: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """One calibration, one rehearsal and one run."""
    config = EngineConfig(model=folder, load_format="dummy", threads=options.threads, kv_memory=POOL)
    prepared = prepare(config)
    engine = start(prepared)
    found = measure(prepared, engine, budget=options.budget, clock=clock)
    costed = with_cost(prepared, engine, found.table)
    assert costed.engine is not None
    assert costed.cost is not None
    asked = requests(job)
    told = predict(costed.prepared, costed.cost, asked, timer=clock)
    watched = Watched(costed.engine, clock)
    seconds = run(costed.engine, asked, clock)
    if options.steps:
        explain(watched.steps, costed.cost.step)
    counters = costed.engine.scheduler.counters
    return {
        "job": job.name,
        "predicted": told.seconds,
        "seconds": seconds,
        "ratio": told.seconds / seconds,
        "computed_predicted": told.computed,
        "computed": counters.computed,
        "steps_predicted": told.steps,
        "steps": counters.steps,
        "calibration": found.seconds,
    }


def compare_demo(options: argparse.Namespace) -> dict[str, Any]:
    """The same through ``shoal calibrate`` and ``shoal run``, whose journal keeps both."""
    shoal = str(Path(sys.executable).parent / "shoal")
    _, _, *flags = command(40 if options.quick else None)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "reviews.jsonl")
        flags[flags.index("-o") + 1] = str(output)
        model = ["--model", flags[flags.index("--model") + 1]]
        if options.threads is not None:
            flags += ["--threads", str(options.threads)]
            model += ["--threads", str(options.threads)]
        steps = ["calibrate", "--fresh", "--budget", str(options.budget), "--json", *model]
        begin = time.perf_counter()
        subprocess.run([shoal, *steps], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        calibration = time.perf_counter() - begin
        subprocess.run([shoal, "run", *flags, "--quiet"], cwd=ROOT, check=True)
        *_, ending = output.with_name(output.name + ".journal").read_text().splitlines()
    found = json.loads(ending)["summary"]["outcome"]
    return {
        "job": DEMO,
        "predicted": found["predicted"],
        "seconds": found["seconds"],
        "ratio": found["predicted"] / found["seconds"],
        "computed_predicted": found["planned"],
        "computed": found["computed"],
        "calibration": calibration,
    }


def run(engine: Engine, asked: list[Request], clock: Clock) -> float:
    begin = clock()
    for item in asked:
        engine.add(item, clock())
    while not engine.idle:
        for answer in engine.step(clock()).finished:
            if answer.error is not None:
                raise answer.error
    return clock() - begin


def explain(steps: list[tuple[StepShape, float]], price: Callable[[StepShape], float]) -> None:
    """Measured and predicted seconds of the steps, by rows and depth."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for shape, took in steps:
        kind = "next tokens" if shape.rows == shape.runs else "with prompts"
        name = f"{kind}, {2 ** int(np.log2(shape.rows))}+ rows"
        for index, value in enumerate((1, took, price(shape))):
            sums[name][index] += value
    for name, (count, took, told) in sorted(sums.items()):
        off = f"{told / took - 1:+.0%}"
        print(f"    {name:<28} {count:>5} steps {took:>8.2f} s, predicted {told:>8.2f} s ({off})")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", default=",".join(TIMED), help=f"some of {','.join((DEMO, *JOBS))}")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small versions of the jobs")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of each calibration")
    parser.add_argument("--steps", action="store_true", help="show steps by kind")
    parser.add_argument("--cpu-time", action="store_true", help="on a busy machine, with one thread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", type=float, default=0.15, help="share of the measured seconds")
    options = parser.parse_args()
    options.jobs = options.jobs.split(",")
    if unknown := set(options.jobs) - {DEMO, *JOBS}:
        parser.error(f"unknown jobs: {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    options = arguments()
    clock = time.process_time if options.cpu_time else time.perf_counter
    results = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(LLAMA_135M))
        for _ in range(options.repeat):
            for name in options.jobs:
                if name == DEMO:
                    found = compare_demo(options)
                else:
                    job = JOBS[name](
                        np.random.default_rng(options.seed), LLAMA_135M["vocab_size"], options.quick
                    )
                    found = compare(job, folder, options, clock)
                results.append(found)
                print(
                    f"{name:<8} predicted {found['predicted']:>7.2f} s, measured {found['seconds']:>7.2f} s, "
                    f"ratio {found['ratio']:.3f}; rows {found['computed_predicted']:,} and "
                    f"{found['computed']:,}; calibrated in {found['calibration']:.0f} s",
                    flush=True,
                )
    ratios = {name: [found["ratio"] for found in results if found["job"] == name] for name in options.jobs}
    medians = {name: median(found) for name, found in ratios.items()}
    worst = max(abs(found["ratio"] - 1.0) for found in results)
    exact = all(found["computed"] == found["computed_predicted"] for found in results)
    said = ", ".join(f"{name} {ratio:.3f}" for name, ratio in medians.items())
    print(f"median ratio {said}; one run at worst {worst:.0%} off")
    print(f"computed tokens {'as' if exact else 'NOT as'} foretold")
    print(
        json.dumps({"bench": "predict", "medians": medians, "worst": worst, "exact": exact, "runs": results})
    )
    return 0 if exact and all(abs(ratio - 1.0) <= options.within for ratio in medians.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
