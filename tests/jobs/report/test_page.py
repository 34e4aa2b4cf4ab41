"""The page: whole, small, well-formed, nobody's text taken for markup, and sensible where there is little."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from shoal.core.config import EngineConfig
from shoal.engine.engine import Engine
from shoal.jobs.ending import Interrupted
from shoal.jobs.job import Job, Summary
from shoal.jobs.report.data import Prefix, Story
from shoal.jobs.report.page import plain, render
from shoal.jobs.trace import (
    MOST_BINS,
    MOST_GROUPS,
    MOST_REASONS,
    MOST_ROWS,
    VERSION,
    Bins,
    FailedRow,
    Group,
    Histogram,
    Savings,
    SlowRow,
    Trace,
)
from shoal.jobs.trace import Session as Process
from tests.jobs.support import completion, results, run, write_lines

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!-- \u202e\x00\x1b[31m {{ 7*7 }}"
)
VOID = {"meta", "col", "link", "br", "img", "input", "hr", "line", "path", "rect"}


class Checker(HTMLParser):
    """Every element is closed in its place; remembers what there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.data: dict[str, Any] = {}
        self.words: list[str] = []
        self._chart = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        assert not any(name.startswith("on") for name in named)
        self._chart = named.get("data-for") or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._chart:
            self.data[self._chart] = json.loads(data)
            self._chart = ""
        elif self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def checked(text: str) -> Checker:
    """The page, taken apart; drawings are XML and nothing comes from elsewhere."""
    page = Checker(text)
    assert page.links == []
    assert "http" not in re.sub(r"http[^ ]* is used", "", text)
    assert page.tags.count("script") == len(page.data) + 1
    for drawing in re.findall(r"<svg.*?</svg>", text, flags=re.S):
        ElementTree.fromstring(drawing)
    assert text.count("<svg") == len(page.data)
    return page


def report(job: Job, **how: Any) -> Checker:
    run(job, **how)
    return checked(job.files.report.read_text(encoding="utf-8"))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    rows = [completion(f"r{i}", "The same beginning for every row of it " + 5 * str(i)) for i in range(40)]
    return Job(input=write_lines(tmp_path / "in.jsonl", rows), output=tmp_path / "out.jsonl")


def test_a_run_leaves_a_page_and_nothing_else(job: Job) -> None:
    page = report(job)
    for words in (
        "40 rows answered in",
        "prompt tokens to compute, and that was exact",
        "The same beginning for every row",
        "1,248 saved · 40 requests · tokens 1 to 32",
        "The slowest rows",
        "None: memory was never so full",
        "FCFS()",
        "Written ",
    ):
        assert words in page.text, words
    assert set(page.data) == {
        *("rate", "size", "sequences", "memory"),
        *("latency", "first_token", "prompt", "answer"),
    }
    assert not job.files.trace.exists()


def test_totals_of_the_charts_are_those_of_the_run(job: Job) -> None:
    page = report(job)
    _, _, heights = page.data["prompt"]["lines"][0]
    assert sum(map(int, heights)) == 40
    edges, (prompt, generated) = page.data["rate"]["x"], page.data["rate"]["lines"]
    assert (prompt[0], generated[0]) == ("prompt tokens", "generated tokens")
    assert edges[0] == 0
    assert edges[-1] == pytest.approx(1)


def test_texts_of_users_stay_texts(tmp_path: Path) -> None:
    rows: list[Any] = [completion(f"{HOSTILE}{i}", HOSTILE * 2 + str(i)) for i in range(20)]
    rows += [
        b'{"custom_id": "<i>", ' + HOSTILE.replace("\x00", "").encode(),
        {"custom_id": "<u>", "prompt": ""},
    ]
    source = write_lines(tmp_path / "<b>in.jsonl", rows)
    name = "<img src=x onerror=alert(3)>.jsonl"
    page = report(Job(input=source, output=tmp_path / name, parameters={"prompt": HOSTILE, "<s>": [HOSTILE]}))
    assert not {"img", "u", "s"} & set(page.tags)
    for text in (HOSTILE[:30], "<b>in.jsonl", name, "line 21", "<u>", "{{ 7*7 }}"):
        assert text in page.text, text
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text


def test_one_row(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [completion("only", "hello")])
    page = report(Job(input=source, output=tmp_path / "out.jsonl"))
    assert "1 row answered in" in page.text
    assert "No planned prefix was shared by several rows." in page.text
    assert "latency" not in page.data


def test_all_failed(job: Job) -> None:
    def broken(engine: Engine) -> None:
        engine.executor.fail = lambda plan: RuntimeError("<b>no</b> device")  # type: ignore[attr-defined]

    page = report(job, engine=broken)
    assert {line["shoal"]["computed_tokens"] for line in results(job.output)} == {0}
    assert "None of 40 rows could be answered" in page.text
    assert "40 RuntimeError: <b>no</b> device" in page.text
    assert "The first 20 are shown" in page.text
    assert page.data == {}


def test_nothing_but_bad_rows(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [b"{"] * 30)
    page = report(Job(input=source, output=tmp_path / "out.jsonl"))
    assert "30 bad rows put aside" in page.text
    assert "The first 20 are shown; all are in out.jsonl.quarantine.jsonl" in page.text


def test_preemptions_are_told(tmp_path: Path) -> None:
    rows = [completion(f"r{i}", f"{i} row", max_tokens=100, ignore_eos=True) for i in range(20)]
    job = Job(input=write_lines(tmp_path / "in.jsonl", rows), output=tmp_path / "out.jsonl")
    config = EngineConfig(model="null", max_num_seqs=16, max_model_len=128, kv_memory=8 * 16 * 20)
    page = report(job, config=config)
    assert "When memory is full" in page.text
    assert "memory ran full" in page.text
    assert "preemptions" in page.data
    assert "because rows that had to yield were computed again" in page.text or "that was exact" in page.text


def test_a_resumed_job_shows_where_it_stopped(job: Job) -> None:
    engines: list[Engine] = []

    def after_two_steps() -> bool:
        return any(engine.scheduler.counters.steps >= 2 for engine in engines)

    with pytest.raises(Interrupted):
        run(job, engine=engines.append, stopping=after_two_steps)
    assert job.files.trace.exists()
    run(job)
    text = job.files.report.read_text()
    assert "It took 2 sessions" in checked(text).text
    assert text.count('<i class="mark"') >= 4
    assert 'title="stopped"' in text


def test_a_report_that_cannot_be_written_costs_no_answer(job: Job) -> None:
    job.files.report.mkdir()
    assert run(job).answered == 40
    assert job.files.report.is_dir()


def test_the_largest_page_is_small() -> None:
    """As after any number of rows: everything that is kept is full, and every text as long as it gets."""
    rng = np.random.default_rng(1)
    long = "<&\"'" * 200
    columns = {name: rng.integers(1, 10**6, MOST_BINS).tolist() for name in Bins.__struct_fields__}
    values = Histogram()
    for value in rng.lognormal(0, 5, 20_000).tolist():
        values.add(value)
    group = Group(1000, 20_000, 10**6, 1, 10**6, 10**9)
    slow = SlowRow(long[:80], 10**6, 1e3, 500.0, 250.0, 250.0, 10**5, 10**5, 10**4, 9, 9, 10**6)
    trace = Trace(
        VERSION,
        "mark",
        sessions=[Process(float(i), 1e9 + 3 * i, 10**6, 16, 1.0, 10**8, 10**8) for i in range(50)],
        bins=Bins(**columns),
        savings=Savings(dict.fromkeys(range(MOST_GROUPS), group)),
        slowest=[slow] * MOST_ROWS,
        failures=[FailedRow(long[:80], 10**6, long[:300], long[:300])] * MOST_ROWS,
        reasons={f"{i}{long[:300]}": 10**6 for i in range(MOST_REASONS)},
        latency=values,
        first_token=values,
        prompt=values,
        answer=values,
        rows=10**6,
    )
    story = Story(
        input=long,
        output=long,
        written="now",
        summary=Summary(rows=10**6, answered=10**6 - 99, failed=99, computed_tokens=10**9, seconds=1e5),
        trace=trace,
        prefixes=[Prefix(group, long)] * 12,
        settings={"Job": [(long, long, long)] * 40},
    )
    text = render(story)
    checked(text)
    assert len(text.encode()) < 1_000_000


def test_texts_are_shown_on_one_line() -> None:
    assert plain("a\nb\t c\x07\u202e") == "a ⏎ b c"
    assert plain("x" * 500, 10) == "x" * 9 + "…"
    assert html.escape(plain("<")) == "&lt;"
