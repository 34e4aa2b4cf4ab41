"""``shoal run`` as a person meets it: exit codes, one-line refusals, what is printed."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.cli.main import code_of
from shoal.cli.options import _constraint
from shoal.core.errors import OperatorError
from tests.jobs.support import answers, completion, mixed_rows, results, write_lines

ROOT = Path(__file__).parents[2]
SHOAL = [sys.executable, "-m", "shoal.cli.main"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", mixed_rows(30, 2))


@pytest.fixture(autouse=True)
def no_signal_handlers_stay() -> object:
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def shoal_run(source: Path, *flags: str, output: str = "out.jsonl") -> int:
    return code_of(["run", str(source), "-o", str(source.with_name(output)), "--model", "null", *flags])


def test_answered(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert shoal_run(source) == 0
    told = capfd.readouterr()
    assert told.out == ""
    assert "null model" in told.err
    assert "answered" in told.err
    assert len(results(source.with_name("out.jsonl"))) == 30
    assert shoal_run(source) == 0
    assert "finished already" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "choices"),
    [(("yes, no",), ("yes", "no")), (("a, b", " c"), ("a, b", " c")), (("only",), ("only",))],
)
def test_choices_with_commas_or_one_by_one(given: tuple[str, ...], choices: tuple[str, ...]) -> None:
    found = _constraint({"choice": given, "regex": None, "json_schema": None})
    assert found is not None
    assert found.value == choices


def test_quiet(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert shoal_run(source, "-q") == 0
    assert capfd.readouterr() == ("", "")


def test_quarantined_rows_give_three(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with source.open("a") as file:
        file.write("{bad\n")
    assert shoal_run(source) == 3
    assert "out.jsonl.quarantine.jsonl" in capfd.readouterr().err
    assert shoal_run(source) == 3


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--model", "no/such/model"], "no/such/model"),
        (["--model", "missing.gguf"], "missing.gguf"),
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "7"], "top_p"),
        (["--order", "nobody"], "unknown order policy 'nobody'"),
        (["--max-num-seqs", "0"], "max_num_seqs"),
        (["--kv-memory", "lots"], "lots"),
        (["--device", "abacus"], "abacus"),
        (["--prompt", "{", "--template", "x"], "both given"),
        (["--prompt", "a { b"], "lone brace"),
        (["--template", "missing.jinja"], "missing.jinja"),
        (["--examples", "missing.csv"], "missing.csv"),
        (["--json-schema", "missing.json"], "missing.json"),
        (["--choice", "a,b", "--regex", "c"], "several constraints"),
        (["-o", "no/such/folder/out.jsonl"], "there is no folder no/such/folder"),
        (["--chat-template-kwargs", "[1]"], "chat-template-kwargs"),
        (["--format", "csv"], "no column `prompt`"),
        (["--limit", "0"], "--limit"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_refused_in_one_line(
    source: Path, capfd: pytest.CaptureFixture[str], flags: list[str], named: str
) -> None:
    assert shoal_run(source, *flags) == 2
    told = capfd.readouterr().err
    assert named in told
    assert "Traceback" not in told
    if told.startswith("shoal:"):
        assert told.count("\n") == 1
    assert [file.name for file in source.parent.iterdir()] == ["in.jsonl"]


def test_missing_and_unreadable_input(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert shoal_run(tmp_path / "none.jsonl") == 2
    assert "none.jsonl" in capfd.readouterr().err
    assert shoal_run(write_lines(tmp_path / "in.xyz", [])) == 2
    assert ".xyz" in capfd.readouterr().err
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no it is not")
    assert shoal_run(tmp_path / "broken.parquet") == 2
    assert "not a readable Parquet file" in capfd.readouterr().err


def test_an_output_that_is_not_ours(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source.with_name("out.jsonl").write_text("precious")
    assert shoal_run(source) == 2
    assert "not overwritten" in capfd.readouterr().err
    assert shoal_run(source, output="other.jsonl") == 0
    assert shoal_run(source, "--max-tokens", "9", output="other.jsonl") == 2
    assert "--max-tokens was 256, is now 9" in capfd.readouterr().err


def test_a_fault_of_ours_leaves_a_crash_file(
    source: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **named: object) -> object:
        raise RuntimeError("wheels came off")

    monkeypatch.setattr("shoal.jobs.runner.run_job", broken)
    assert shoal_run(source, "-q") == 1
    told = capfd.readouterr().err
    assert "wheels came off" in told
    assert told.count("\n") == 1
    crash = source.with_name("out.jsonl.crash.txt")
    assert str(crash) in told
    assert "Traceback" in crash.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed(tmp_path: Path, number: signal.Signals) -> None:
    source = write_lines(tmp_path / "in.jsonl", [completion(f"r{i}", f"text {i}") for i in range(4000)])
    output = tmp_path / "out.jsonl"
    command = [*SHOAL, "run", str(source), "-o", str(output), "--model", "null", "--max-num-seqs", "4"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (output.exists() and output.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "goes on" in told
    written = len(results(output))
    assert 0 < written < 4000
    assert shoal_run(source, "-q", "--max-num-seqs", "64") == 0
    assert len(answers(output)) == 4000


def test_a_small_terminal(source: Path) -> None:
    """The live panel on a terminal of ten columns and two lines."""
    main, side = pty.openpty()
    environment = {**os.environ, "COLUMNS": "10", "LINES": "2", "TERM": "xterm"}
    command = [*SHOAL, "run", str(source), "-o", str(source.with_name("out.jsonl")), "--model", "null"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=side, stdin=side, env=environment)
    os.close(side)
    told = b""
    while True:
        try:
            chunk = os.read(main, 1 << 16)
        except OSError:
            break
        if not chunk:
            break
        told += chunk
    os.close(main)
    assert process.wait(timeout=60) == 0
    assert b"answered" in told
    assert b"Traceback" not in told


def test_help_names_the_exit_codes_and_policies_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert code_of(["run", "--help"]) == 0
    told = capfd.readouterr().out
    for code in ("0 ", "1 ", "2 ", "3 ", "130 "):
        assert f"\n    {code}" in told
    assert code_of(["policies"]) == 0
    assert "fcfs" in capfd.readouterr().out
    assert code_of(["--version"]) == 0
    assert "shoal 0" in capfd.readouterr().out


COLD = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "safetensors"}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocked())
from shoal.cli.main import code_of
from shoal.cli.options import _constraint
from shoal.core.errors import OperatorError
codes = [code_of(arguments) for arguments in %s]
print(codes)
"""


def test_nothing_cold_imports_torch(source: Path) -> None:
    output = str(source.with_name("out.jsonl"))
    commands = [
        ["--help"],
        ["run", "--help"],
        ["run", "missing.jsonl", "-o", output, "--model", "null"],
        ["run", str(source), "-o", output, "--model", "missing.gguf"],
        ["run", str(source), "-o", output, "--model", "null", "-q"],
    ]
    code = COLD % json.dumps(commands)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[0, 0, 2, 2, 0]", done.stderr


def test_a_table_with_worked_examples(tmp_path: Path) -> None:
    """CSV in, a shared few-shot beginning, a kept column out."""
    source = tmp_path / "in.csv"
    source.write_text('id,text,gold\na,"one, two",x\nb,,y\nc,three,z\n')
    (tmp_path / "examples.csv").write_text("text,answer\nfirst,A\nsecond,B\n")
    flags = [
        "--prompt",
        "Text: {text}\nLabel:",
        "--examples",
        str(tmp_path / "examples.csv"),
        "--keep",
        "gold",
    ]
    assert shoal_run(source, *flags, "--temperature", "0", "--max-tokens", "3") == 0
    lines = {line["custom_id"]: line for line in results(tmp_path / "out.jsonl")}
    assert {name: line["shoal"]["columns"]["gold"] for name, line in lines.items()} == {
        "a": "x",
        "b": "y",
        "c": "z",
    }
    length = len("Text: first\nLabel: A\n\nText: second\nLabel: B\n\nText: one, two\nLabel:")
    assert lines["a"]["response"]["body"]["usage"]["prompt_tokens"] == length
    assert lines["c"]["shoal"]["cached_tokens"] > 0


def test_a_conversation_over_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    source = tmp_path / "in.parquet"
    parquet.write_table(pa.table({"text": ["a", "b", None], "when": [1, 2, 3]}), source)
    (tmp_path / "t.jinja").write_text("Say {{ text }} {{ when }}")
    flags = [
        "--template",
        str(tmp_path / "t.jinja"),
        "--system",
        "Be brief.",
        "--keep",
        "when",
        "--keep",
        "text",
    ]
    assert shoal_run(source, *flags, "--max-tokens", "2", "--ordered") == 0
    lines = results(tmp_path / "out.jsonl")
    assert [line["shoal"]["columns"] for line in lines] == [
        {"when": 1, "text": "a"},
        {"when": 2, "text": "b"},
        {"when": 3, "text": None},
    ]
    assert lines[0]["response"]["body"]["object"] == "chat.completion"
    prompt = "system: Be brief.\nuser: Say a 1\nassistant: "
    assert lines[0]["response"]["body"]["usage"]["prompt_tokens"] == len(prompt)


def test_twice_interrupted_leaves_at_once(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [completion(f"r{i}", f"text {i}") for i in range(4000)])
    output = tmp_path / "out.jsonl"
    code = (
        "import os, sys, signal\n"
        "from shoal.engine.engine import Engine\n"
        "def stuck(self, now):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    raise SystemExit('still here')\n"
        "Engine.step = stuck\n"
        "from shoal.cli.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "run", str(source), "-o", str(output), "--model", "null"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    assert shoal_run(source, "-q", "--limit", "10", output="other.jsonl") == 0


def test_weights_that_cannot_be_loaded_leave_nothing(
    source: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **named: object) -> object:
        raise OperatorError("truncated", where="model.safetensors", remedy="download it again")

    monkeypatch.setattr("shoal.engine.build.start", broken)
    assert shoal_run(source, "-q") == 2
    assert capfd.readouterr().err == "shoal: model.safetensors: truncated (download it again)\n"
    assert [file.name for file in source.parent.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("shell", ["{} 2>&-", "{} 2>/dev/full", "{{ {} 2>&3; }} 3>&1 | true"])
def test_a_job_needs_nobody_who_reads_what_it_says(source: Path, shell: str) -> None:
    output = source.with_name("out.jsonl")
    command = f"{' '.join(SHOAL)} run {source} -o {output} --model null"
    subprocess.run(["bash", "-c", shell.format(command)], cwd=ROOT, timeout=60)
    assert len(results(output)) == 30


def test_interrupted_together_with_who_reads_it(tmp_path: Path) -> None:
    """Ctrl-C reaches every process of a pipe: ``shoal run ... 2>&1 | tee log``."""
    source = write_lines(tmp_path / "in.jsonl", mixed_rows(4000, 2))
    command = [*SHOAL, "run", str(source), "-o", str(tmp_path / "out.jsonl"), "--model", "null"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    while not (tmp_path / "out.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130


def test_an_id_that_no_row_could_use_is_refused_once(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert shoal_run(source, "--stop-token-id", "259") == 2
    assert "--stop-token-id 259" in capfd.readouterr().err
    assert not source.with_name("out.jsonl.journal").exists()
