"""A contestant as a process: loaded once, asked by a line, stopped while the other has its turn."""

from __future__ import annotations

import ctypes
import json
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import machine
from benchmarks.peers.environments import ROOT, Unavailable, clean

LOADING, RUNNING = 1200.0, 3600.0
"""Seconds that loading, and one run of a job, may take."""

_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """A contest that is killed leaves nobody behind, who would hold memory for ever if he is stopped."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """Started and loaded when made.

    Args:
        command: the program with its arguments; replies come on its standard output.
        log: where its standard error goes.
        variables: its environment, None for ours without what leads into our own packages.

    Attributes:
        about: its first reply: settings, and how its caches are made cold.

    Raises:
        Unavailable: it does not start.
    """

    def __init__(
        self,
        command: list[str],
        log: Path,
        variables: dict[str, str] | None = None,
        patience: float = LOADING,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("w") as errors:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env=clean() if variables is None else variables,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self._rest = b""
        try:
            self.about = self._reply(patience)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._child.pid

    def run(self, job: Path, out: Path, patience: float = RUNNING) -> dict[str, Any]:
        """One job, caches cold: tokens produced for each request, and the seconds of it by its own clock.

        Raises:
            Unavailable: it failed, ended, or took too long.
        """
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({"job": str(job), "out": str(out)}).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._reply(patience)

    def stop(self) -> None:
        """It and its children compute nothing until ``go_on``."""
        machine.stop(self.pid)

    def go_on(self) -> None:
        machine.go_on(self.pid)

    def close(self) -> None:
        machine.end(self.pid)
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def _reply(self, patience: float) -> dict[str, Any]:
        assert self._child.stdout is not None
        deadline = time.monotonic() + patience
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._child.stdout], [], [], left)[0]:
                raise Unavailable(f"no answer within {patience:,.0f} s")
            data = self._child.stdout.read1(1 << 16)  # type: ignore[attr-defined]
            if not data:
                raise self._ended()
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        reply = json.loads(line)
        if "error" in reply:
            raise Unavailable(reply["error"])
        return reply

    def _ended(self) -> Unavailable:
        code = self._child.wait()
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return Unavailable(f"ended with {how}: {lines[-1][:200]}" if lines else f"ended with {how}")
