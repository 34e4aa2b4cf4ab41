"""Pairs: alternation, strangers, mismatches, and a cut run that goes on where it was."""

from __future__ import annotations

import contextlib

import pytest

from benchmarks.peers import contest
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.machine import Turn
from benchmarks.peers.record import Cell, Record

OUTPUTS = [4, 1]


class Runner:
    """Answers from a list of seconds; notes what was done to whom."""

    def __init__(self, name, log, seconds=1.0, tokens=OUTPUTS, error=None):
        self.about = {"settings": ["none"], "cold_by": "nothing"}
        self.name, self.log, self.seconds, self.tokens, self.error = name, log, seconds, tokens, error

    def run(self, job, out):
        self.log.append(f"{self.name} runs")
        if self.error is not None:
            raise self.error
        return {"tokens": self.tokens, "seconds": self.seconds}

    def stop(self):
        self.log.append(f"{self.name} stops")

    def go_on(self):
        self.log.append(f"{self.name} goes on")


def watch_of(*disturbed):
    """One answer a turn; quiet after the last."""
    turns = iter(disturbed)

    @contextlib.contextmanager
    def watch():
        yield Turn(others=1e9 if next(turns, False) else 0.0)

    return watch


def cell(key="one"):
    return Cell("llama135m", "shared", "vllm", {"sources": key}, sum(OUTPUTS), wanted=5)


def measure(record, found, ours, theirs, tmp_path, say=lambda text: None):
    contest.measure(record, found, ours, theirs, tmp_path / "job.json", OUTPUTS, say, watch_of())


def test_one_runs_while_the_other_is_stopped(tmp_path):
    log = []
    found = contest.pair(Runner("a", log), Runner("b", log, 3.0), tmp_path / "job.json", OUTPUTS, watch_of())
    assert log == ["a goes on", "a runs", "a stops", "b goes on", "b runs", "b stops"]
    assert (found.ratio, found.disturbed, found.retries) == (3.0, False, 0)


def test_a_disturbed_pair_is_run_again_as_a_whole(tmp_path):
    log = []
    watch = watch_of(False, True, True, False)
    found = contest.pair(Runner("a", log), Runner("b", log), tmp_path / "job.json", OUTPUTS, watch)
    assert [line for line in log if "runs" in line] == ["a runs", "b runs"] * 3
    assert (found.disturbed, found.retries) == (False, 2)


def test_a_stranger_who_stays_leaves_a_mark(tmp_path):
    watch = watch_of(*[True] * 99)
    found = contest.pair(Runner("a", []), Runner("b", []), tmp_path / "job.json", OUTPUTS, watch)
    assert (found.disturbed, found.retries) == (True, contest.RETRIES)


@pytest.mark.parametrize("tokens", [[4, 2], [5, 0], [4], []])
@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_other_counts_make_the_cell_void(tmp_path, tokens, who):
    record = Record(tmp_path / "record.json")
    found = record.cell(cell())
    runners = {"ours": Runner("a", []), "theirs": Runner("b", [])}
    runners[who].tokens = tokens
    measure(record, found, runners["ours"], runners["theirs"], tmp_path)
    assert f"{sum(tokens)} tokens" in found.void
    assert found.whole
    assert Record.read(record.path).cells["llama135m/shared/vllm"].void == found.void


def test_a_cut_run_goes_on_where_it_was(tmp_path):
    record, log = Record(tmp_path / "record.json"), []
    ours, theirs = Runner("a", log), Runner("b", log, 2.0)

    def cut(text):
        if len(log) >= 2 * 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(record, record.cell(cell()), ours, theirs, tmp_path, cut)
    again = Record.read(record.path)
    found = again.cell(cell())
    assert len(found.pairs) == 2
    log.clear()
    measure(again, found, ours, theirs, tmp_path)
    assert log.count("a runs") == log.count("b runs") == 3
    assert found.whole
    assert found.ratios == (2.0, 2.0, 2.0)
    log.clear()
    measure(again, again.cell(cell()), ours, theirs, tmp_path)
    assert log == []


def test_other_sources_or_versions_start_the_cell_anew(tmp_path):
    record = Record(tmp_path / "record.json")
    measure(record, record.cell(cell()), Runner("a", []), Runner("b", []), tmp_path)
    again = Record.read(record.path)
    assert again.cell(cell()).whole
    assert not again.cell(cell("two")).pairs
    assert len(again.cells) == 1


def test_who_fails_keeps_the_pairs_so_far_and_the_reason(tmp_path):
    record = Record(tmp_path / "record.json")
    found = record.cell(cell())
    with pytest.raises(Unavailable):
        measure(record, found, Runner("a", []), Runner("b", [], error=Unavailable("no AVX-512")), tmp_path)
    assert Record.read(record.path).cells["llama135m/shared/vllm"].failed == "no AVX-512"


def test_what_shoal_fails_in_is_not_held_against_the_peer(tmp_path):
    record = Record(tmp_path / "record.json")
    found = record.cell(cell())
    with pytest.raises(RuntimeError, match="shoal failed: no memory"):
        measure(record, found, Runner("a", [], error=Unavailable("no memory")), Runner("b", []), tmp_path)
    assert not found.failed


def test_who_is_far_behind_the_fastest_gets_no_more_pairs(tmp_path):
    record = Record(tmp_path / "record.json")
    fast, near, far, other = (
        record.cell(Cell("llama135m", job, peer, {}, 10, wanted=5))
        for job, peer in (("mixed", "a"), ("mixed", "b"), ("mixed", "c"), ("decode", "c"))
    )
    assert not record.behind(fast)
    for found, seconds in ((fast, 10.0), (near, 14.9), (far, 15.1), (other, 99.0)):
        found.pairs.append(contest.Pair(ours=1.0, theirs=seconds))
    assert [record.behind(found) for found in (fast, near, far, other)] == [False, False, True, False]
    fast.void = "another number of tokens"
    assert not record.behind(far)
