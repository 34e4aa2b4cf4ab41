"""``shoal reproduce`` over an experiment that claims what it is told to."""

from __future__ import annotations

import json
import sys

import pytest

from shoal.cli.main import code_of
from shoal.experiments import registry

FAKES = ("fails", "run", "silent", "slow")


@pytest.fixture(autouse=True)
def fakes(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "EXPERIMENTS", {name: f"tests.experiments.fake:{name}" for name in FAKES})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def shown(capsys, *arguments):
    code = code_of(["reproduce", *arguments])
    return code, capsys.readouterr()


def test_a_row_a_claim_and_a_picture(capsys, tmp_path):
    code, said = shown(capsys, "run", "--seed", "7")
    assert code == 0
    rows = {line.split("  ")[0]: line.split() for line in said.out.splitlines()}
    assert rows["steps are few"][3:] == ["2,400", "steps", "1,200", "steps", "<=", "1,500", "steps", "pass"]
    assert rows["it is quick"][-1] == "pass"
    assert rows["it is quick at scale"][-2:] == ["needs", "simulate"]
    assert rows["twos"] == ["twos", "1,200", "0.5"]
    assert said.out.splitlines()[-1].startswith("run: 3 of 3 claims hold, 1 not judged; seed 7,")
    assert (tmp_path / "out" / "reproduce" / "run.svg").read_text().startswith("<?xml")


def test_what_holds_decides_the_exit_code(capsys):
    codes = {name: shown(capsys, name)[0] for name in FAKES}
    assert codes == {"run": 0, "fails": 3, "silent": 3, "slow": 3}
    assert shown(capsys, "slow", "--quick")[0] == 0
    assert shown(capsys, "all", "--quick")[0] == 3


def test_json_is_one_line_and_says_everything(capsys):
    code, said = shown(capsys, "run", "--json", "--quick", "--seed", "3")
    (line,) = said.out.splitlines()
    found = json.loads(line)
    assert (code, found["system"], found["passed"], found["seed"], found["quick"]) == (
        0,
        "run",
        True,
        3,
        True,
    )
    assert found["seconds"] >= 0
    steps, _, clocked, later = found["claims"]
    assert steps == {
        "name": "steps are few",
        "value": 1200,
        "op": "<=",
        "threshold": 1500,
        "unit": "steps",
        "passed": True,
        "kind": "counted",
        "judged": True,
        "baseline": 2400,
        "needs": None,
    }
    assert (clocked["kind"], clocked["judged"], clocked["passed"]) == ("clocked", False, None)
    assert (later["needs"], later["judged"], later["value"]) == ("simulate", False, None)
    _, said = shown(capsys, "fails", "--json")
    assert [claim["value"] for claim in json.loads(said.out)["claims"]] == [1600, None]
    _, said = shown(capsys, "all", "--json")
    assert [json.loads(line)["system"] for line in said.out.splitlines()] == list(FAKES)


def test_the_list_names_every_system(capsys):
    code, said = shown(capsys, "--list")
    about = "Compares counting by ones with counting by twos."
    assert code == 0
    assert [line.split(None, 1) for line in said.out.splitlines()] == [[name, about] for name in FAKES]
    _, said = shown(capsys, "--list", "--json")
    assert json.loads(said.out) == [{"name": name, "summary": about} for name in FAKES]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "which system"),
        (("rum",), "did you mean 'run'?"),
        (("all", "--picture", "a.svg"), "several systems"),
        (("run", "--picture", "a.txt"), ".svg"),
        (("run", "--picture", "/proc/nowhere/a.svg"), "cannot write there"),
        (("run", "--page", "/proc/nowhere"), "cannot write there"),
        (("run", "--seed", "-1"), "-1"),
    ],
)
def test_refusals(capsys, arguments, word):
    code, said = shown(capsys, *arguments)
    assert code == 2
    assert word in said.err


@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
def test_every_width_shows_every_figure_whole(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    _, said = shown(capsys, "run")
    assert max(map(len, said.out.splitlines())) <= width
    words = said.out.replace(",\n", ", ").split()
    for figure in ("1,200", "1.75", "simulate", "2,400", "0.5"):
        assert any(figure in word for word in words), figure


def test_a_folder_that_takes_no_picture_costs_no_result(capsys, tmp_path):
    (tmp_path / "out").write_text("a file")
    code, said = shown(capsys, "run", "--json")
    assert code == 0
    assert json.loads(said.out)["passed"]
    assert "no picture: " in said.err


def test_without_matplotlib_it_goes_on(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, said = shown(capsys, "run")
    assert code == 0
    assert "no picture: matplotlib is not installed" in said.err
    assert not (tmp_path / "out").exists()


def test_a_fault_in_an_experiment_is_a_fault_of_shoal(capsys, monkeypatch):
    monkeypatch.setattr(registry, "EXPERIMENTS", {"broken": "tests.experiments.fake:broken"})
    code, said = shown(capsys, "broken")
    assert code == 1
    assert "a fault of shoal: ZeroDivisionError" in said.err
