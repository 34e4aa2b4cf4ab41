"""The demo's data are fit to judge by, and its figures are counted right."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest

from examples import demo


def rows(name: str) -> list[dict[str, str]]:
    with (demo.HERE / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_data_are_distinct_labelled_and_balanced():
    data, shown = rows("reviews.csv"), rows("reviews.examples.csv")
    assert len(data) >= 200
    assert len({row["id"] for row in data}) == len(data)
    texts = [row["text"] for row in (*data, *shown)]
    assert len(set(texts)) == len(texts)
    assert {row["answer"] for row in shown} == set(demo.LABELS)
    labels = Counter(row[demo.GOLD] for row in data)
    assert set(labels) == set(demo.LABELS)
    assert max(labels.values()) <= len(data) / 2


def line(gold: str, answer: str | None, **accounts: int) -> str:
    body = {"choices": [{"text": answer}], "usage": {"prompt_tokens": 100}}
    response = None if answer is None else {"body": body}
    shoal = {"cached_tokens": 0, "computed_tokens": 0, "columns": {demo.GOLD: gold}, **accounts}
    return json.dumps({"response": response, "shoal": shoal})


def test_the_score_counts_answers_and_tokens(tmp_path):
    output = tmp_path / "out.jsonl"
    lines = [
        line("positive", "positive", cached_tokens=80, computed_tokens=20),
        line("negative", "positive", computed_tokens=100),
        line("negative", "maybe", folded_into=3),
        line("positive", None),
    ]
    output.write_text("\n".join(lines) + "\n")
    score = demo.score(output)
    assert (score.answered, score.right, score.malformed, score.commonest) == (3, 1, 1, 2)
    assert (score.prompt_tokens, score.computed_tokens, score.saved_tokens) == (300, 120, 180)


def test_the_interval_is_wilsons():
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662, and 0 of 20 gives 0 to 0.1611.
    assert demo.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert demo.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_the_command_is_shown_as_one_types_it():
    shown = demo.typed(demo.command(40))
    assert shown.startswith("shoal run examples/reviews.csv -o out/demo/reviews.jsonl --model demo ")
    assert "--prompt $'Review: {text}\\nSentiment:\\n' " in shown
    assert shown.endswith("--limit 40")
