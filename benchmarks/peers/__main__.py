"""The contest: shoal against its peers on the five jobs, pair by pair.

    python -m benchmarks.peers [--peers vllm,openvino] [--jobs shared] [--models llama135m] [--pairs 5]

Peers are installed on first use, each in an environment of its own under out/peers. Every cell gets one pair
first, then those whose peer is near the fastest get the others; peers far behind keep their one. A run that
was cut goes on where it was. Results go to docs (benchmarks.md, peers.json, peers.svg); those of ``--quick``
stay under out/peers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.peers import environments, models, table, workload
from benchmarks.peers.contest import OURS, measure
from benchmarks.peers.contestants.protocol import Start
from benchmarks.peers.environments import ENVIRONMENTS, HOME, ROOT, Unavailable
from benchmarks.peers.process import Process
from benchmarks.peers.record import Cell, Record, sources_digest
from benchmarks.peers.roster import MODELS, PAIRS, PEERS, Peer
from shoal.bench.jobs import JOBS, Job
from shoal.engine import machine

DOCS = ROOT / "docs"
WARM_UP = "warm-up"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, known in (("peers", PEERS), ("jobs", JOBS), ("models", MODELS)):
        parser.add_argument(f"--{name}", default=",".join(known), help=f"some of {','.join(known)}")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--threads", type=int, default=machine.threads()[0])
    parser.add_argument("--quick", action="store_true", help="small versions of the jobs; docs stay")
    parser.add_argument("--install", action="store_true", help="make the environments and run nothing")
    parser.add_argument("--page", action="store_true", help="write the page and run nothing")
    options = parser.parse_args()
    for name, known in (("peers", PEERS), ("jobs", JOBS), ("models", MODELS)):
        chosen = getattr(options, name).split(",")
        if unknown := set(chosen) - set(known):
            parser.error(f"unknown {name}: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        setattr(options, name, chosen)
    return options


class Contest:
    """All cells that were asked for, in an order that starts each contestant as seldom as possible."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.size = "quick" if options.quick else "full"
        self.record = Record.read(HOME / f"contest-{self.size}.json")
        self.record.machine = {
            "processor": machine.processor(),
            "instructions": machine.isa(),
            "threads": options.threads,
            "size": self.size,
        }
        self.sources = sources_digest()
        self.versions = {name: version(name) for name in ("shoal", "torch")}
        self.say = Console(highlight=False).print

    def run(self) -> None:
        for model in self.options.models:
            folder = models.provide(model, "folder")
            jobs = {n: workload.job_of(n, model, folder, self.options.quick) for n in self.options.jobs}
            peers = [PEERS[name] for name in self.options.peers if model in PEERS[name].models]
            workload.write(workload.job_of("mixed", model, folder, True), self._job_file(model, WARM_UP))
            self._limits(model, folder)
            for pairs in (1, self.options.pairs):
                for peer in peers:
                    self._peer(model, folder, peer, jobs, pairs)

    def _limits(self, model: str, folder: Path) -> None:
        found = workload.limits(folder, model, self.options.jobs, self.options.quick, self.options.threads)
        self.record.limits[model] = self.record.limits.get(model, {}) | found
        self.record.save()

    def _peer(self, model: str, folder: Path, peer: Peer, jobs: dict[str, Job], pairs: int) -> None:
        versions, trouble, form = {}, "", folder
        try:
            versions = environments.install(ENVIRONMENTS[peer.environment])
            form = models.provide(model, peer.form)
        except Unavailable as error:
            trouble = str(error)
        cells = {name: self._cell(model, peer, job, versions, pairs) for name, job in jobs.items()}
        by_pool: dict[int | None, list[str]] = defaultdict(list)
        for name, cell in cells.items():
            if not cell.whole:
                by_pool[jobs[name].kv_tokens].append(name)
        for pool, names in by_pool.items():
            try:
                if trouble:
                    raise Unavailable(trouble)
                self._pool(folder, form, peer, pool, {name: (jobs[name], cells[name]) for name in names})
            except Unavailable as error:
                for name in names:
                    if not cells[name].whole:
                        cells[name].failed = str(error)
                        self.say(f"{model} {name} {peer.name}: not run: {error}")
                self.record.save()

    def _cell(self, model: str, peer: Peer, job: Job, versions: dict[str, str], pairs: int) -> Cell:
        digest = workload.write(job, self._job_file(model, job.name))
        key = {"sources": self.sources, "versions": versions, "variant": peer.variant, "job": digest}
        key |= self.record.machine
        wanted = pairs if peer.pairs is None else min(pairs, peer.pairs)
        cell = Cell(model, job.name, peer.name, key, sum(job.outputs), wanted)
        cell.ours["versions"], cell.theirs["versions"] = self.versions, versions
        cell = self.record.cell(cell)
        if self.record.behind(cell):
            cell.wanted = len(cell.pairs)
        return cell

    def _job_file(self, model: str, name: str) -> Path:
        return HOME / "jobs" / f"{model}-{name}-{self.size}.json"

    def _pool(
        self, folder: Path, form: Path, peer: Peer, pool: int | None, cells: dict[str, tuple[Job, Cell]]
    ) -> None:
        """Load both, warm both up on the small version of a job, and run the pairs of these cells."""
        model = next(iter(cells.values()))[1].model
        warm_up = self._job_file(model, WARM_UP)
        with (
            self._started(OURS, "on_shoal", folder, pool, {}, warm_up) as ours,
            self._started(
                peer.name, peer.module, form, pool, peer.variant, warm_up, peer.environment
            ) as theirs,
        ):
            for name, (job, cell) in cells.items():
                measure(self.record, cell, ours, theirs, self._job_file(model, name), job.outputs, self.say)

    @contextlib.contextmanager
    def _started(
        self,
        name: str,
        module: str,
        path: Path,
        pool: int | None,
        variant: dict[str, Any],
        warm_up: Path,
        environment: str = "",
    ) -> Iterator[Process]:
        """A contestant that is loaded, warmed up and stopped; in shoal's environment unless one is named."""
        longest = min(workload.LONGEST, pool or workload.LONGEST)
        start = Start(str(path), self.options.threads, pool, longest, variant)
        python = str(ENVIRONMENTS[environment].python) if environment else sys.executable
        command = [python, "-m", f"benchmarks.peers.contestants.{module}", json.dumps(vars(start))]
        self.say(f"{name} loads {path.name}")
        variables = None if environment else dict(os.environ)
        try:
            process = Process(command, HOME / "logs" / f"{name}.log", variables)
        except Unavailable as error:
            raise _blamed(error, name) from None
        try:
            try:
                process.run(warm_up, warm_up.with_suffix(".out"))
            except Unavailable as error:
                raise _blamed(error, name) from None
            process.stop()
            yield process
        finally:
            process.close()


def _blamed(error: Unavailable, name: str) -> Exception:
    """Where shoal itself fails the contest ends: that is no fault of the peer."""
    return RuntimeError(f"{OURS} failed: {error}") if name == OURS else error


def main() -> None:
    options = arguments()
    # An end by SIGTERM also ends the contestants and their children.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    contest = Contest(options)
    if options.install:
        for name in dict.fromkeys(PEERS[peer].environment for peer in options.peers):
            try:
                print(name, environments.install(ENVIRONMENTS[name]), flush=True)
            except Unavailable as error:
                print(name, error, flush=True)
        return
    if not options.page:
        contest.run()
    target = DOCS if not options.quick else HOME / "quick"
    for file in table.publish(contest.record, target):
        contest.say(f"{file.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
