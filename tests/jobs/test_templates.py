from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import CallerError, OperatorError
from shoal.jobs.examples import read_examples
from shoal.jobs.templates import Layout, columns_of, from_jinja, from_pattern


@given(st.text(max_size=20), st.text(max_size=20))
def test_values_are_never_read_as_patterns(text: str, value: str) -> None:
    pattern = text.replace("{", "{{").replace("}", "}}") + "{a b.c[0]}"
    assert from_pattern(pattern)({"a b.c[0]": value}) == text + value
    assert columns_of(pattern) == ["a b.c[0]"]


@pytest.mark.parametrize("pattern", ["{", "a } b", "{}", "{a}{", "{{}"])
def test_braces_that_mean_nothing(pattern: str) -> None:
    with pytest.raises(OperatorError, match="lone brace"):
        from_pattern(pattern)


def test_values_as_text() -> None:
    question = from_pattern("{a}|{b}|{c}|{d}")
    assert question({"a": 1, "b": 2.5, "c": [1, "x"], "d": True}) == '1|2.5|[1,"x"]|true'


def test_jinja_over_columns() -> None:
    question = from_jinja("{% for name in row %}{{ name }}={{ row[name] }};{% endfor %}{{ text|upper }}", "t")
    assert question({"text": "a", "n": 1}) == "text=a;n=1;A"


@pytest.mark.parametrize(
    "template",
    ["{{ missing }}", "{{ 1 / 0 }}", "{{ ''.__class__.__mro__ }}", "{{ row.pop('a') }}", "{{ a + 1 }}"],
)
def test_a_template_that_fails_on_a_row(template: str) -> None:
    with pytest.raises(CallerError, match="the template fails on this row"):
        from_jinja(template, "t")({"a": "x"})


def test_a_template_that_does_not_compile() -> None:
    with pytest.raises(OperatorError, match="template line 2"):
        from_jinja("ok\n{% if %}", "file.jinja")


def test_examples_out_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "examples.csv"
    path.write_text("text,answer\na,1\nb,2\n")
    examples = read_examples(path, from_pattern("<{text}>"), "answer")
    assert [(example.question, example.answer) for example in examples] == [("<a>", "1"), ("<b>", "2")]
    assert Layout(examples=examples).completion("<c>") == "<a> 1\n\n<b> 2\n\n<c>"
    with pytest.raises(OperatorError, match="`label` is missing") as refusal:
        read_examples(path, from_pattern("{text}"), "label")
    assert f"{path}:2" in str(refusal.value)


def test_ids() -> None:
    layout = Layout()
    assert layout.id_of({"id": 3, "custom_id": "c"}) == "c"
    assert layout.id_of({"id": 3, "custom_id": ""}) == 3
    assert layout.id_of({"text": "x"}) is None
    with pytest.raises(CallerError):
        layout.id_of({"id": 2.5})


def test_a_column_of_ids_alone_is_the_prompt() -> None:
    ids = np.array([5, 6, 7], dtype=np.int32)
    assert from_pattern("{ids}")({"ids": ids}) is ids
    assert from_pattern("{ids}")({"ids": [5, 6]}) == [5, 6]
    assert from_pattern("Sum {ids}:")({"ids": ids}) == "Sum [5,6,7]:"
    assert from_pattern("{ids}")({"ids": ["a"]}) == '["a"]'
    assert from_jinja("{{ ids }} {{ row.ids[0] }}", "t")({"ids": ids}) == "[5, 6, 7] 5"
    assert Layout(keep=("ids",)).kept({"ids": ids}) == b'{"ids":[5,6,7]}'
