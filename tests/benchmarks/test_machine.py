"""Who computes beside a contestant, over a made-up /proc."""

from __future__ import annotations

import pytest

from benchmarks.peers import machine


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """Writes /proc: busy seconds of all cores, and {pid: (parent, own seconds, those of dead children)}."""
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (1.0, 9.0, 9.0))

    def write(busy, family):
        ticks = int(busy * machine.TICK)
        (tmp_path / "stat").write_text(f"cpu  {ticks} 0 0 999 555 0 0 0 {ticks} 0\ncpu0 1 1 1 1\n")
        for pid, (parent, own, dead) in family.items():
            (tmp_path / str(pid)).mkdir(exist_ok=True)
            own, dead = int(own * machine.TICK), int(dead * machine.TICK)
            rest = f"S {parent} 1 1 0 -1 0 0 0 0 0 {own} 0 {dead} 0 20 0"
            (tmp_path / str(pid) / "stat").write_text(f"{pid} (a ) name) {rest}")

    return write


def test_a_family_is_a_process_and_all_below_it(proc):
    proc(0, {10: (1, 0, 0), 11: (10, 0, 0), 12: (11, 0, 0), 20: (1, 0, 0)})
    assert sorted(machine.family(10)) == [10, 11, 12]
    assert machine.family(99) == []


def test_what_the_family_computed_is_nobody_elses(proc):
    proc(100, {10: (1, 5, 0), 11: (10, 1, 0), 20: (1, 7, 0)})
    with machine.watched([10]) as turn:
        proc(104, {10: (1, 6, 1), 11: (10, 3, 0), 20: (1, 7, 0)})
    assert turn.others == pytest.approx(0)
    assert not turn.disturbed


def test_a_stranger_is_seen(proc):
    proc(100, {10: (1, 5, 0), 20: (1, 7, 0)})
    with machine.watched([10]) as turn:
        proc(104, {10: (1, 7, 0), 20: (1, 9, 0)})
    assert turn.others == pytest.approx(2)
    assert turn.disturbed


def test_a_high_load_average_disturbs(proc, monkeypatch):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (machine.os.cpu_count() + 2.5, 0.0, 0.0))
    proc(100, {10: (1, 5, 0)})
    with machine.watched([10]) as turn:
        pass
    assert turn.disturbed
