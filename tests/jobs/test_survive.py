"""SIGKILL at any system call, again while resuming: no row lost, none twice, the same answers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.support import answers, completion, mixed_rows, results, write_lines
from tests.models.build import llama_metadata, llama_tensors, write_gguf
from tests.sizes import size

ROOT = Path(__file__).parents[2]
ROWS = 240
SEQUENCES = 8
LONGEST = 60
KILLED = -9


@dataclass
class Outcome:
    code: int
    computed: int
    calls: dict[str, int]
    error: str


def shoal(
    folder: Path, call: str = "write", count: int = 0, when: str = "before", model: str = "null"
) -> Outcome:
    """One process of the job in ``folder``, killed at the chosen call."""
    side = folder / "side.json"
    side.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.jobs.mortal", call, str(count), when, str(side)]
    command += ["run", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "--model", model, "-q"]
    command += ["--ordered", "--max-num-seqs", str(SEQUENCES), "--max-model-len", "128"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)
    told = json.loads(side.read_text())
    return Outcome(done.returncode, told["computed"], told["calls"], done.stderr)


@dataclass
class Undisturbed:
    folder: Path
    answers: dict[int, Any]
    calls: dict[str, int]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_lines(folder / "in.jsonl", [*mixed_rows(ROWS, 7), b"{bad", {"prompt": ""}])
    outcome = shoal(folder)
    assert outcome.code == 3, outcome.error
    return Undisturbed(folder, answers(folder / "out.jsonl"), outcome.calls)


def moments(calls: dict[str, int], number: int) -> list[list[tuple[str, int, str]]]:
    """Chains of deaths, each of a process of its own: the first at a fresh start, later ones on resuming.

    They are spread over every write (journal, spool, quarantine, first row, the rows after it), over the
    reading of the input, the syncs and the final rename; torn writes among them.
    """
    rng = random.Random(number)
    chains: list[list[tuple[str, int, str]]] = [
        [("replace", 1, "before"), ("replace", 1, "after")],
        [("readv", 1, "after"), ("fsync", 2, "before")],
        [("write", 1, "torn"), ("write", 2, "torn")],
    ]
    share = (number - sum(len(chain) for chain in chains)) // 2
    for i in range(share):
        first = 3 + i * (calls["write"] - 4) // max(1, share)
        again = rng.randint(2, max(3, calls["write"] - first))
        chains.append([("write", first, rng.choice(["before", "torn"])), ("write", again, "torn")])
    return chains


def test_killed_anywhere_and_resumed(
    undisturbed: Undisturbed, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    deaths = most = 0
    for place, chain in enumerate(moments(undisturbed.calls, size(12, 26))):
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / "in.jsonl").write_bytes((undisturbed.folder / "in.jsonl").read_bytes())
        computed = died = 0
        for call, count, when in chain:
            outcome = shoal(folder, call, count, when)
            assert outcome.code == KILLED, (chain, outcome)
            computed += outcome.computed
            died += 1
        outcome = shoal(folder)
        assert outcome.code == 3, (chain, outcome.error)
        assert answers(folder / "out.jsonl") == undisturbed.answers, chain
        lines = results(folder / "out.jsonl")
        assert [line["shoal"]["line"] for line in lines] == sorted(undisturbed.answers)
        needed = sum(line["shoal"]["computed_tokens"] for line in lines)
        again = computed + outcome.computed - needed
        assert 0 <= again <= died * SEQUENCES * LONGEST, (chain, again)
        assert sorted(file.name for file in folder.iterdir()) == sorted(
            [
                *("in.jsonl", "out.jsonl", "out.jsonl.journal", "out.jsonl.quarantine.jsonl"),
                *("out.jsonl.report.html", "side.json"),
            ]
        )
        deaths += died
        most = max(most, again)
    figure(
        f"{deaths} deaths on the null executor, each resumed to the same {len(undisturbed.answers)} answers; "
        f"at most {most} tokens computed again"
    )


def test_torn_tails(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """What a power cut may leave: output and journal end anywhere, the output perhaps in zeros."""
    rng = random.Random(11)
    for place in range(size(3, 12)):
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / "in.jsonl").write_bytes((undisturbed.folder / "in.jsonl").read_bytes())
        assert shoal(folder, "write", rng.randint(40, 200), "torn").code == KILLED
        output, journal = folder / "out.jsonl", folder / "out.jsonl.journal"
        data = output.read_bytes()
        output.write_bytes(data[: rng.randint(1, len(data))] + b"\0" * (place % 2) * 50)
        told = journal.read_bytes()
        start = told.index(b'"session"') if b'"session"' in told else len(told)
        journal.write_bytes(told[: rng.randint(start, len(told))])
        outcome = shoal(folder)
        assert outcome.code == 3, outcome.error
        assert answers(output) == undisturbed.answers


NEAR = 1e-4
"""Distance of the two best logits below which library products may decide either way."""


def same_greedy(one: Any, other: Any) -> int:
    """Compare the answers of two result lines; returns how many differences near ties excused."""
    first, second = (line["response"]["body"]["choices"][0]["logprobs"] for line in (one, other))
    for place, token in enumerate(first["tokens"]):
        if token != second["tokens"][place]:
            best, next_best = sorted(first["top_logprobs"][place].values())[-1:-3:-1]
            assert best - next_best < NEAR, (place, first, second)
            return 1
    assert len(first["tokens"]) == len(second["tokens"])
    return 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_with_a_model(tmp_path: Path, figure: Callable[[str], None]) -> None:
    tiny = str(write_gguf(tmp_path / "tiny.gguf", llama_metadata(), llama_tensors()))
    model, deaths = size((tiny, 1), ("demo", 4))
    rows = [completion(f"r{i}", f"Number {i} is", max_tokens=4 + i % 5, logprobs=2) for i in range(24)]
    whole = tmp_path / "whole"
    whole.mkdir()
    write_lines(whole / "in.jsonl", rows)
    outcome = shoal(whole, model=model)
    assert outcome.code == 0, outcome.error
    wanted = {line["custom_id"]: line for line in results(whole / "out.jsonl")}
    excused = most = 0
    for place in range(deaths):
        folder = tmp_path / str(place)
        folder.mkdir()
        write_lines(folder / "in.jsonl", rows)
        killed = shoal(folder, "write", 14 + 5 * place, ["before", "torn"][place % 2], model)
        assert killed.code == KILLED, killed
        outcome = shoal(folder, model=model)
        assert outcome.code == 0, outcome.error
        lines = results(folder / "out.jsonl")
        assert [line["custom_id"] for line in lines] == [row["custom_id"] for row in rows]
        excused += sum(same_greedy(wanted[line["custom_id"]], line) for line in lines)
        needed = sum(line["shoal"]["computed_tokens"] for line in lines)
        most = max(most, killed.computed + outcome.computed - needed)
        assert 0 <= most <= SEQUENCES * LONGEST
    assert excused <= 1
    figure(
        f"{deaths} deaths on {Path(model).name}, {excused} near ties excused, {most} tokens computed again"
    )
