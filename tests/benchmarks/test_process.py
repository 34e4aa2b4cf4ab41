"""A contestant's process: its lines, its end, and that it computes nothing while it is stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.peers import machine
from benchmarks.peers.environments import ROOT, Unavailable
from benchmarks.peers.process import Process


@pytest.fixture
def start(tmp_path):
    """Starts fake contestants and ends them after the test."""
    running = []

    def started(**variant):
        begin = {"model": "none", "threads": 2, "kv_tokens": None, "longest": 64, "variant": variant}
        command = [sys.executable, "-m", "tests.benchmarks.fake", json.dumps(begin)]
        running.append(Process(command, tmp_path / "log"))
        return running[-1]

    yield started
    for process in running:
        process.close()


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"name": "small", "prompts": [[1, 2], [3]], "outputs": [4, 1], "common": 0}))
    return path


def test_a_job_goes_in_and_counts_seconds_and_ids_come_out(start, job, tmp_path):
    process = start()
    assert process.about == {"settings": ["threads=2"], "cold_by": "keeps nothing"}
    for _ in range(2):
        reply = process.run(job, tmp_path / "out")
        assert reply["tokens"] == [4, 1]
        assert 0 <= reply["seconds"] < 60
        assert json.loads((tmp_path / "out").read_text()) == [[7] * 4, [7]]


def test_one_that_does_not_load_says_why_in_one_line(start):
    with pytest.raises(Unavailable, match=r"^ValueError: this processor$"):
        start(refuse=True)


def test_a_reason_names_no_place_of_this_machine():
    assert str(Unavailable(f"cannot load {ROOT}/out/peers/x.so")) == "cannot load out/peers/x.so"


def test_a_failed_job_leaves_it_running(start, job, tmp_path):
    process = start(fail=True)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"^RuntimeError: no block is free$"):
            process.run(job, tmp_path / "out")


def test_one_that_ends_leaves_its_last_words(start, job, tmp_path):
    process = start(end=True)
    with pytest.raises(Unavailable, match="ended with exit 3: Illegal instruction, perhaps"):
        process.run(job, tmp_path / "out")


def test_patience_ends(start, job, tmp_path):
    process = start(sleep=30)
    with pytest.raises(Unavailable, match="no answer within"):
        process.run(job, tmp_path / "out", patience=0.1)


def test_stopped_means_its_children_too(start, tmp_path):
    counter = tmp_path / "beats"
    process = start(beat=str(counter))
    wait_for_more(counter, "")
    process.stop()
    assert len(machine.family(process.pid)) == 2
    known = machine.processes()
    assert {known[pid].state for pid in machine.family(process.pid)} == {"T"}
    stood = counter.read_text()
    time.sleep(0.1)
    assert counter.read_text() == stood
    process.go_on()
    wait_for_more(counter, stood)
    children = machine.family(process.pid)
    process.stop()
    process.close()
    assert all(machine.processes().get(pid, GONE).state in "ZX" for pid in children)


def test_nobody_outlives_a_contest_that_is_killed(tmp_path):
    begin = {"model": "none", "threads": 2, "kv_tokens": None, "longest": 64, "variant": {}}
    command = [sys.executable, "-m", "tests.benchmarks.fake", json.dumps(begin)]
    program = (
        "import os, signal; from pathlib import Path; from benchmarks.peers.process import Process\n"
        f"child = Process({command!r}, Path({str(tmp_path / 'log')!r})); child.stop()\n"
        "print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 30
    while machine.processes().get(int(done.stdout), GONE).state not in "ZX":
        assert time.monotonic() < deadline
        time.sleep(0.01)


GONE = machine.Entry(0, "X", 0.0)


def wait_for_more(counter, than):
    deadline = time.monotonic() + 30
    while not counter.is_file() or counter.read_text() in ("", than):
        assert time.monotonic() < deadline
        time.sleep(0.01)
