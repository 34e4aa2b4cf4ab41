"""Every experiment by the name of the system that it justifies, one line each."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from importlib import import_module

from shoal.core.registry import Registry
from shoal.experiments.claims import Findings, Outcome, Trial

EXPERIMENTS: dict[str, str] = {
    "batchllm": "shoal.experiments.batchllm:run",
    "flover": "shoal.experiments.flover:run",
    "hydragen": "shoal.experiments.hydragen:run",
    "sarathi-serve": "shoal.experiments.sarathi_serve:run",
    "vattention": "shoal.experiments.vattention:run",
}


def registry() -> Registry:
    return Registry("experiment", EXPERIMENTS)


def description(name: str) -> str:
    """The docstring of the experiment's module.

    Raises:
        OperatorError: no experiment of that name.
    """
    run = registry().get(name)
    return inspect.cleandoc(import_module(run.__module__).__doc__ or "")


def summary(name: str) -> str:
    """What the experiment shows, in one line."""
    return next(iter(description(name).splitlines()), "")


def reproduce(
    name: str, seed: int = 0, quick: bool = False, watch: Callable[[str], None] = lambda text: None
) -> Outcome:
    """Run one experiment here and now.

    Args:
        watch: told in a few words what is going on.

    Raises:
        OperatorError: no experiment of that name.
    """
    run = registry().get(name)
    trial = Trial(seed, quick)
    findings = Findings(trial, watch)
    started = time.perf_counter()
    run(trial, findings)
    seconds = time.perf_counter() - started
    return Outcome(name, trial, tuple(findings.claims), tuple(findings.tables), findings.draw, seconds)
