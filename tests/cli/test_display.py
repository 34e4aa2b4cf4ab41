"""What a person sees of a run on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from shoal.cli.display import Panel
from shoal.jobs.job import Status


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    """A terminal 60 columns wide that Panel takes for its own."""
    screen = io.StringIO()

    def console(**_: object) -> Console:
        return Console(file=screen, width=60, force_terminal=True, color_system=None)

    monkeypatch.setattr("rich.console.Console", console)
    return screen


def test_the_figures_stand_below_the_bar(terminal):
    panel = Panel()
    panel.running(Status(rows=8, done=2), now=1.0)
    panel.running(Status(rows=8, done=4), now=2.0)
    shown = panel._live.get_renderable()
    panel.close()
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(shown)
    bar, *figures = console.file.getvalue().splitlines()
    assert set(bar) <= set("━╸╺ ")
    assert figures[0].rstrip() == "4/8 rows · 2.0 s left"
    assert figures[1].startswith("prefill 0 tok/s · decode 0 tok/s")


def test_rows_that_end_in_bursts_do_not_bend_the_time_left():
    display = Panel()
    display._take(Status(rows=90, done=10), 0.0)
    for second in range(1, 60):
        display._take(Status(rows=90, done=10), float(second))
    assert display._figures(Status(rows=90, done=50), 60.0)["left"] == "1:00"


def test_preparing_says_how_fast_and_how_long(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("shoal.cli.display.time.monotonic", lambda: now[0])
    display = Panel()
    assert display._prepared(0, 900, 0, 0, 0) == "0 rows · 0 bad"
    now[0] += 10.0
    assert display._prepared(300, 900, 5, 1, 7_000_000) == "5 rows · 1 bad · 0.70 M tokens/s · 20.0 s left"
