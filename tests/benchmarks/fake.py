"""A contestant without a model: it answers at once, and does what its variant says."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.peers.contestants.protocol import Job, Start, serve


class Fake:
    """Variants: ``refuse`` (does not load), ``fail`` (no job), ``end`` (exits), ``sleep`` (seconds a job),
    ``beat`` (a file in which a child process counts), ``extra`` (tokens too many)."""

    cold_by = "keeps nothing"

    def __init__(self, start: Start) -> None:
        self.variant = start.variant
        if "refuse" in self.variant:
            raise ValueError("this processor\nis too old")
        print("libraries print what they like")
        if "beat" in self.variant:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.fake", self.variant["beat"]]
            )
        self.settings = [f"threads={start.threads}"]

    def cold(self, job: Job) -> None:
        pass

    def answer(self, job: Job) -> list[list[int]]:
        if "fail" in self.variant:
            raise RuntimeError("no block is free")
        if "end" in self.variant:
            print("Illegal instruction, perhaps", flush=True)
            os._exit(3)
        time.sleep(self.variant.get("sleep", 0))
        return [[7] * (output + self.variant.get("extra", 0)) for output in job.outputs]


def beat(path: Path) -> None:
    for number in itertools.count():
        path.write_text(str(number))
        time.sleep(0.005)


if __name__ == "__main__":
    if sys.argv[1].startswith("{"):
        serve(Fake)
    else:
        beat(Path(sys.argv[1]))
