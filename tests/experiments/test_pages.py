"""Docs pages: written from docstrings and outcomes, and those in docs/ are up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shoal.core import policies
from shoal.core.policy import SEAMS
from shoal.experiments import pages, registry
from shoal.experiments.claims import Findings, Outcome, Trial
from shoal.experiments.picture import LARGEST
from tests.experiments import fake

DOCS = Path(__file__).parents[2] / "docs"
DOCSTRING = """Counts by twos.

As ``Ones``, but faster:

    f(n) = n / 2

Args:
    step: how far
        each count goes.
    low, high: the ends.

Whole numbers only.
"""


def outcome() -> Outcome:
    findings = Findings(Trial(seed=5))
    fake.run(findings.trial, findings)
    return Outcome("fake", findings.trial, tuple(findings.claims), tuple(findings.tables), None, 2.0)


def test_a_docstring_becomes_text_and_what_it_says_of_each_parameter():
    text, said = pages._split(DOCSTRING)
    assert text.startswith("Counts by twos.\n\nAs ``Ones``")
    assert text.endswith("f(n) = n / 2\n\nWhole numbers only.")
    assert said == {"step": "how far each count goes.", "low": "the ends.", "high": "the ends."}
    assert "As `Ones`, but" in pages.prose(DOCSTRING)


def test_results_show_every_claim_table_and_the_picture():
    lines = pages.results(outcome(), Path("somewhere/fake.svg")).splitlines()
    assert lines[0] == pages.RESULTS
    assert lines[2].startswith("`shoal reproduce fake --seed 5`, shoal ")
    assert "| steps are few | 2,400 steps | 1,200 steps | <= 1,500 steps | counted | pass |" in lines
    assert "| it is quick at scale |  |  |  |  | needs simulate |" in lines
    assert "![fake: the picture of this run](fake.svg)" in lines
    assert lines[-2:] == ["| ones | 2,400 | 1 |", "| twos | 1,200 | 0.5 |"]


def test_every_policy_is_in_the_index_once():
    index = pages.index()
    for seam in ("policy", *SEAMS):
        part = index.split(f"## `--{seam}`")[1].split("\n## ")[0]
        for name in policies.POLICIES[seam]:
            rows = [line for line in part.splitlines() if line.split("|")[1:2] and name in line.split("|")[1]]
            assert rows, f"{seam} {name}"


def test_renewing_a_page_keeps_its_results(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "EXPERIMENTS", {"sarathi-serve": "tests.experiments.fake:run"})
    found = Outcome("sarathi-serve", Trial(), outcome().claims, (), None, 1.0)
    page = pages.write_page(found, None, tmp_path / "systems")
    whole = page.read_text()
    assert "Compares counting by ones" in whole
    page.write_text(whole.replace("Compares counting", "It was another text"))
    assert pages.renew(tmp_path) == [tmp_path / "policies.md", page]
    assert page.read_text() == whole
    page.unlink()
    pages.renew(tmp_path)
    assert page.read_text() == pages.static_part("sarathi-serve")


def test_the_index_says_what_the_docstrings_say():
    assert (DOCS / "policies.md").read_text(encoding="utf-8") == pages.index(), "run make pages"


@pytest.mark.parametrize("name", registry.EXPERIMENTS)
def test_every_page_says_what_the_docstrings_say_and_what_was_reproduced(name):
    page = (DOCS / "systems" / f"{name}.md").read_text(encoding="utf-8")
    static, heading, found = page.partition(f"\n{pages.RESULTS}\n")
    assert static == pages.static_part(name), "run make pages"
    assert heading
    assert "| pass |" in found
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", found)
    assert pictures
    for picture in pictures:
        assert 0 < (DOCS / "systems" / picture).stat().st_size < LARGEST
