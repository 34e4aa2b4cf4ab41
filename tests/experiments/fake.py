"""Compares counting by ones with counting by twos.

The system of the tests: it claims what it is told to.
"""

from __future__ import annotations

import numpy as np

from shoal.experiments.claims import Findings, Trial


def run(trial: Trial, findings: Findings) -> None:
    findings.progress("counting")
    findings.counted("steps are few", np.int64(1200), "<=", 1500, unit="steps", baseline=2400)
    findings.counted("answers are equal", True, "==", True)
    findings.clocked("it is quick", 1.75, ">=", 1.5, unit="x")
    findings.needs("it is quick at scale", "simulate")
    findings.table(
        "By policy",
        ["policy", "steps", "share of all steps, each counted once"],
        [["ones", 2400, 1.0], ["twos", 1200, 0.5]],
    )
    findings.picture(lambda figure: figure.subplots().plot([1, 2, 3], [trial.seed, 2, 1]))


def fails(trial: Trial, findings: Findings) -> None:
    findings.counted("steps are few", 1600, "<=", 1500)
    findings.counted("a share of nothing", float("nan"), ">=", 0.0)


def slow(trial: Trial, findings: Findings) -> None:
    findings.counted("steps are few", 1, "<=", 1)
    findings.clocked("it is quick", 1.25, ">=", 1.5, unit="x")


def silent(trial: Trial, findings: Findings) -> None:
    findings.needs("everything", "simulate")


def broken(trial: Trial, findings: Findings) -> None:
    findings.counted("a share", 1 / trial.seed, ">=", 0)
