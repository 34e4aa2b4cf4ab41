"""What every test runs under: no network, compute threads that sleep instead of spinning; and figures.

A test that measures something says so through the fixture ``figure``; the figures are printed after the
run and appended to the file that SHOAL_FIGURES names, one JSON object a line.
"""

from __future__ import annotations

import json
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
    name = request.node.nodeid.removeprefix("tests/")

    def keep(text: str) -> None:
        _FIGURES.append((name, text))
        path = os.environ.get("SHOAL_FIGURES")
        if path:
            with open(path, "a") as file:
                file.write(json.dumps({"test": name, "figure": text}) + "\n")

    return keep


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _FIGURES:
        terminalreporter.section("figures")
        for name, text in _FIGURES:
            terminalreporter.write_line(f"{name}: {text}")
