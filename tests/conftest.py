"""What every test runs under: no network, compute threads that sleep instead of spinning; and figures.

A test that measures something says so through the fixture ``figure``; the figures are printed after the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

_FIGURES: list[tuple[str, str]] = []


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``figure("1,024 tokens compared, 0 excused")``: kept under the test's name."""

    def keep(text: str) -> None:
        request.node.user_properties.append(("figure", text))

    return keep


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Reports come home from every worker process."""
    if report.when == "call":
        name = report.nodeid.removeprefix("tests/")
        _FIGURES.extend((name, str(text)) for key, text in report.user_properties if key == "figure")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _FIGURES:
        terminalreporter.section("figures")
        for name, text in sorted(_FIGURES):
            terminalreporter.write_line(f"{name}: {text}")
