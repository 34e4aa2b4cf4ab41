"""The contest's page: winners, losers, the void and the missing all stand in the table."""

from __future__ import annotations

import json

from benchmarks.peers import table
from benchmarks.peers.record import Cell, Pair, Record

MACHINE = {"processor": "A Processor", "instructions": "AVX2", "threads": 2, "size": "full"}


def record_of(tmp_path, *cells):
    record = Record(tmp_path / "contest.json", machine=MACHINE)
    for cell in cells:
        record.cells[f"{cell.model}/{cell.job}/{cell.peer}"] = cell
    record.limits = {"llama135m": {"shared": {"seconds": 0.5}}}
    record.save()
    return record


def cell(peer, *pairs, model="llama135m", job="shared", **more):
    found = Cell(model, job, peer, {"sources": "abc"}, 100, 5, [Pair(*pair) for pair in pairs], **more)
    found.theirs = {"settings": ["a=1"], "cold_by": "reset", "versions": {peer: "1.0"}}
    return found


def rows(record):
    text = table.section(record, None)
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {line[1].strip(): [part.strip(" |") for part in line] for line in lines}


def test_ratios_spread_threshold_and_share(tmp_path):
    pairs = [(1.0, 2.0), (1.0, 1.5), (1.0, 1.0)]
    found = rows(record_of(tmp_path, cell("vllm", *pairs), cell("openvino", (1.0, 9.0))))
    assert found["vllm"][2:5] == ["100.0", "66.7", "**1.50x**"]
    assert found["vllm"][5] == "1.00 to 2.00, 3 of 5"
    assert found["vllm"][6] == "at least 1.3x: reached"
    assert found["vllm"][7] == "50% of 200, at least 80%: missed"
    assert found["openvino"][4:] == ["9.00x", "9.00 to 9.00, 1 of 5", "", ""]


def test_a_lost_cell_stays_and_decides(tmp_path):
    found = rows(record_of(tmp_path, cell("vllm", (2.0, 1.0)), cell("openvino", (1.0, 9.0))))
    assert found["vllm"][4:7] == ["**0.50x**", "0.50 to 0.50, 1 of 5", "at least 1.3x: missed"]


def test_void_and_absent_peers_say_why_and_decide_nothing(tmp_path):
    found = rows(
        record_of(
            tmp_path,
            cell("vllm", (2.0, 1.0), void="peer produced 3 tokens"),
            cell("vllm-eager", failed="no AVX-512 | here"),
            cell("vllm-zentorch"),
            cell("openvino", (1.0, 2.0)),
        )
    )
    assert found["vllm"][2:6] == ["–", "–", "–", "void: peer produced 3 tokens"]
    assert found["vllm-eager"][5] == "not run: no AVX-512 / here"
    assert found["vllm-zentorch"][5] == "not run yet"
    assert found["openvino"][4] == "**2.00x**"


def test_another_class_of_weights_is_no_rival(tmp_path):
    found = rows(
        record_of(
            tmp_path,
            cell("vllm", (1.0, 2.0), model="gemma270m"),
            cell("llama.cpp", (2.0, 1.0), model="gemma270m"),
        )
    )
    assert found["vllm"][4] == "**2.00x**"
    assert found["llama.cpp (4-bit weights: another class)"][4] == "0.50x"


def test_disturbed_pairs_are_told(tmp_path):
    record = record_of(tmp_path, cell("vllm", (1.0, 2.0, True, 3), (1.0, 2.0)))
    assert "2 of 5 (1 disturbed)" in table.section(record, None)
    assert "1 pair was disturbed" in table.section(record, None)


def test_the_rest_of_the_page_stays(tmp_path):
    (tmp_path / table.PAGE).write_text(f"# Title\n\n{table.BEGIN}\nformer words\n{table.END}\n\n## After\n")
    record = record_of(tmp_path, cell("vllm", (1.0, 2.0)))
    files = table.publish(record, tmp_path)
    once = (tmp_path / table.PAGE).read_text()
    assert once.startswith("# Title\n")
    assert once.endswith("\n\n## After\n")
    assert "former words" not in once
    assert "A Processor (AVX2), 2 threads" in once
    assert "**vllm** (vllm 1.0): a=1. Cold by: reset." in once
    assert json.loads((tmp_path / table.NUMBERS).read_text())["machine"] == MACHINE
    assert table.PICTURE in {file.name for file in files}
    table.publish(record, tmp_path)
    assert (tmp_path / table.PAGE).read_text() == once
