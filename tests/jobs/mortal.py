"""``shoal`` in a process that kills itself at a chosen system call.

    python -m tests.jobs.mortal CALL COUNT WHEN SIDE ARGUMENTS...

CALL is a function of ``os``; at its COUNT-th call (0: never) the process gets SIGKILL: WHEN is ``before``
the call, ``torn`` after half of a write, or ``after`` it. SIDE receives, as JSON, how often each call was
made and how many rows the engine computed, at the moment of death or at the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from shoal.cli.main import code_of
from shoal.engine import build
from shoal.engine.priced import PricedExecutor

CALLS = ("write", "fsync", "replace", "readv", "truncate")


class Life:
    """Counts the calls, and ends at the chosen one."""

    def __init__(self, call: str, count: int, when: str, side: Path) -> None:
        self.chosen, self.count, self.when, self.side = call, count, when, side
        self.calls = dict.fromkeys(CALLS, 0)
        self.engine: Any = None
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        assemble = build.assemble

        def remembered(*arguments: Any) -> Any:
            engine = assemble(*arguments)
            if not isinstance(engine.executor, PricedExecutor):
                self.engine = engine
            return engine

        build.assemble = remembered

    def _wrapped(self, name: str, real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            if name == self.chosen and self.calls[name] == self.count:
                if self.when == "torn":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                elif self.when == "after":
                    real(*arguments)
                self.tell()
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return call

    def tell(self) -> None:
        computed = self.engine.scheduler.counters.computed if self.engine else 0
        self.side.write_text(json.dumps({"calls": self.calls, "computed": computed}))


def main() -> None:
    call, count, when, side, *arguments = sys.argv[1:]
    life = Life(call, int(count), when, Path(side))
    code = code_of(arguments)
    life.tell()
    sys.exit(code)


if __name__ == "__main__":
    main()
