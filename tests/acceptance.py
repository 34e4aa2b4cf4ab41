"""The rows of one table of promises, each by a command, with the figures it printed.

    python tests/acceptance.py --what run            every row, then a table
    python tests/acceptance.py --what run --tests    only the rows that are tests (make test-long)
    python tests/acceptance.py --what run --only survives

Tests run at the sizes the tables name (SHOAL_TEST_SIZE=long). A row that has passed is not run again until
the sources change, so that a cut run goes on where it was; --fresh forgets that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / "out" / "acceptance"


@dataclass(frozen=True)
class Row:
    """One promise. ``show`` is a pattern; the matching lines of the output are the figures."""

    name: str
    command: tuple[str, ...]
    show: str = r"^\S+::.*: |^\d+ passed|^FAILED|^ERROR"
    test: bool = True


SHOAL = (sys.executable, "-m", "shoal.cli.main")
SYSTEMS = ("batchllm", "sarathi-serve", "flover")
CLAIMS = r"(pass|FAIL|not judged|needs \w+) *$|claims hold"


def tests(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "--timeout=5000", *arguments)


TABLES = {
    "run": (
        Row(
            "the demo",
            ("make", "demo"),
            r"accuracy|commonest label|points above|saved by sharing|malformed|^time|rows answered",
            test=False,
        ),
        Row("right answers", tests("tests/models", "tests/kernels", "--ignore=tests/models/test_fuzz.py")),
        Row("nothing depends on company", tests("tests/engine/test_company.py")),
        Row(
            "books balance",
            tests("tests/engine/test_books.py", "tests/memory", "tests/schedule", "tests/core"),
        ),
        Row("survives", tests("tests/jobs/test_survive.py")),
        Row("bounded", tests("tests/jobs/test_bounded.py")),
        Row("bad rows", tests("tests/jobs/test_bad_rows.py")),
        Row("bad start", tests("tests/cli")),
        Row("model files", tests("tests/models/test_fuzz.py")),
        Row(
            "overhead",
            (sys.executable, "benchmarks/overhead.py"),
            r"^ +\d+ |^ running",
            test=False,
        ),
        Row(
            "first look at speed",
            (*SHOAL, "bench"),
            r"[a-z].*\d",
            test=False,
        ),
        Row("house", tests("tests/test_house.py", "tests/test_plugin.py", "tests/test_llm.py")),
    ),
    "plan": (
        Row(
            "exact planning",
            tests("tests/reuse", "tests/jobs/test_plan.py", "--ignore=tests/reuse/test_scale.py"),
        ),
        *(
            Row(
                f"{system} with seed {seed}",
                (*SHOAL, "reproduce", system, "--seed", seed),
                CLAIMS,
                test=False,
            )
            for system in SYSTEMS
            for seed in "012"
        ),
        Row("the plan is honest", (sys.executable, "benchmarks/predict.py"), r"ratio|at worst", test=False),
        Row("it scales", tests("tests/reuse/test_scale.py", "tests/jobs/test_plan_scale.py")),
        Row("a user's view", tests("tests/cli/test_plan.py", "tests/jobs/report")),
        Row(
            "policies, layouts and claims",
            tests(
                *("tests/schedule", "tests/memory", "tests/experiments", "tests/cli/test_reproduce.py"),
                *("tests/core", "tests/test_llm.py", "tests/test_house.py", "tests/test_plugin.py"),
            ),
        ),
        Row(
            "costs, rehearsals and places",
            tests(
                *("tests/engine/test_calibrate.py", "tests/engine/test_calibration.py"),
                *(
                    "tests/engine/test_priced.py",
                    "tests/engine/test_dry_run.py",
                    "tests/engine/test_slots.py",
                ),
                "tests/cli/test_calibrate.py",
            ),
        ),
    ),
    "speed": (
        *(
            Row(
                f"at least {least} of the limit: {jobs}",
                (*SHOAL, "bench", jobs, "--dtype", "bfloat16", "--repeat", times, "--at-least", least),
                r"[a-z].*\d",
                test=False,
            )
            for jobs, least, times in (
                ("shared,mixed,decode", "0.8", "3"),
                ("forest", "0.7", "3"),
                ("single", "0.7", "15"),
            )
        ),
        Row("roofline", (*SHOAL, "bench", "roofline"), r"\d", test=False),
        *(
            Row(
                f"{system} with seed {seed}",
                (*SHOAL, "reproduce", system, "--seed", seed),
                CLAIMS,
                test=False,
            )
            for system in ("hydragen", "vattention")
            for seed in "012"
        ),
        Row("the same bits", tests("tests/engine/test_same_bits.py")),
        Row("kernels and their twins", tests("tests/kernels", "tests/models/tensors")),
        Row("kernels under sanitizers", ("make", "sanitize"), r"\d+ passed|ERROR|FAILED", test=False),
        Row("start-up", (sys.executable, "benchmarks/startup.py"), r"median", test=False),
        Row("memory", tests("tests/engine/test_memory.py", "tests/models/test_load_memory.py", "-s")),
        Row("the contest", ("make", "bench-peers"), r"\d", test=False),
    ),
}


def sources() -> str:
    """A digest of everything a row's outcome may depend on."""
    names = subprocess.run(
        ["git", "ls-files", "src", "tests", "examples", "benchmarks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    digest = hashlib.sha256()
    for name in sorted(names):
        file = ROOT / name
        if file.is_file():
            digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def run(row: Row, what: str) -> dict[str, object]:
    """Run one row's command, its output shown as it comes and kept in a file."""
    log = STATE / f"{what}-{re.sub(r'[^a-z0-9]+', '-', row.name)}.log"
    started = time.monotonic()
    lines = []
    environment = os.environ | {"SHOAL_TEST_SIZE": "long"}
    with log.open("w") as file:
        process = subprocess.Popen(
            row.command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            print("  " + line, end="", flush=True)
            file.write(line)
            lines.append(line.rstrip())
    shown = [line for line in lines if re.search(row.show, line)]
    return {
        "passed": process.wait() == 0,
        "seconds": round(time.monotonic() - started, 1),
        "figures": shown[-40:],
    }


def report(rows: tuple[Row, ...], done: dict[str, dict[str, object]]) -> bool:
    print("\n" + "=" * 100)
    for row in rows:
        result = done.get(row.name)
        if result is None:
            print(f"not run  {row.name}")
            continue
        print(f"{'pass' if result['passed'] else 'FAIL':8} {row.name}  ({result['seconds']} s)")
        for line in result["figures"]:  # type: ignore[attr-defined]
            print(f"           {line}")
    return all(done.get(row.name, {}).get("passed") for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--what", choices=sorted(TABLES), default="run")
    parser.add_argument("--tests", action="store_true", help="only the rows that are tests")
    parser.add_argument("--only", help="only rows whose name contains this")
    parser.add_argument("--fresh", action="store_true", help="run rows again that have passed")
    options = parser.parse_args()
    rows = tuple(
        row
        for row in TABLES[options.what]
        if (row.test or not options.tests) and (options.only or "") in row.name
    )
    STATE.mkdir(parents=True, exist_ok=True)
    state, version = STATE / f"{options.what}.json", sources()
    done: dict[str, dict[str, object]] = {}
    if state.exists() and not options.fresh:
        kept = json.loads(state.read_text())
        done = kept["rows"] if kept["sources"] == version else {}
    for row in rows:
        if done.get(row.name, {}).get("passed"):
            continue
        print(f"\n{row.name}: {' '.join(row.command)}", flush=True)
        done[row.name] = run(row, options.what)
        state.write_text(json.dumps({"sources": version, "rows": done}, indent=1))
    return 0 if report(rows, done) else 1


if __name__ == "__main__":
    raise SystemExit(main())
