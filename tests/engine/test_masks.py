from __future__ import annotations

import json
import threading

import llguidance
import numpy as np
import pytest

from shoal.core.errors import CallerError, InternalError
from shoal.core.request import Constraint
from shoal.engine import masks as module
from shoal.engine.masks import MaskCompiler, Matcher
from tests.engine.toy_tokenizers import byte_fallback, byte_level, word_piece

PADDING = 45
"""Rows of logits beyond the tokenizer's ids, as models pad their vocabulary."""
KINDS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}
OBJECT = json.dumps(
    {
        "type": "object",
        "properties": {"label": {"enum": ["a", "b"]}, "why": {"type": "array", "items": {"type": "boolean"}}},
        "required": ["label", "why"],
        "additionalProperties": False,
    }
)


def compiler(tokenizer) -> MaskCompiler:
    return MaskCompiler(lambda: tokenizer.backend, tokenizer.vocabulary_size + PADDING, [tokenizer.eos_id])


@pytest.fixture(scope="module", params=KINDS)
def known(request):
    tokenizer = KINDS[request.param]
    return tokenizer, compiler(tokenizer)


def allowed(matcher: Matcher) -> list[int]:
    return np.flatnonzero(np.unpackbits(matcher.bits().view(np.uint8), bitorder="little")).tolist()


def accepted(masks: MaskCompiler, constraint: Constraint, text: str) -> bool:
    """Whether the masks let an answer be ``text`` and end there, by the longest tokens that fit."""
    matcher = masks.compile(constraint).start()
    rest = text.encode()
    while rest:
        fitting = {
            bytes_: token for token in allowed(matcher) if rest.startswith(bytes_ := spelled(masks, token))
        }
        if matcher.finished or not fitting:
            return False
        longest = max(fitting, key=len)
        matcher.advance(fitting[longest])
        rest = rest[len(longest) :]
    ends = masks._end_ids[0] in allowed(matcher)
    assert matcher.accepting == ends
    return ends


def spelled(masks: MaskCompiler, token: int) -> bytes:
    if token in masks._end_ids:
        return b"\xff"  # in no UTF-8 text
    return masks._tokenizer.decode_bytes([token]) or b"\xff"


WORDS = ("yes", "yes no", "né 😀", "a.b|c\n*")


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("choice", WORDS, WORDS, ["", "ye", "yes n", "axb"]),
        ("regex", "[0-9]{2}-(yes|no)?", ["12-", "12-no"], ["12", "1-no", "12-maybe", "123-"]),
        ("regex", "^(né|日本語)+$", ["né", "日本語né"], ["日本", "n"]),
        (
            "json_schema",
            OBJECT,
            ['{"label": "a", "why": [true]}', '{"label":"b","why":[]}'],
            ['{"label": "c"', '{"label": "a"}', "{}"],
        ),
        ("json_schema", "true", ["null", "[1, 2]"], ["nul", "]"]),
    ],
)
def test_exactly_the_texts_of_the_constraint(known, kind, value, good, bad):
    _, masks = known
    constraint = Constraint(kind=kind, value=value)
    assert [text for text in good if not accepted(masks, constraint, text)] == []
    assert [text for text in bad if accepted(masks, constraint, text)] == []


def test_finished_only_where_nothing_may_follow(known):
    tokenizer, masks = known
    matcher = masks.compile(Constraint(kind="choice", value=("yes", "yes no"))).start()
    states = []
    for token in tokenizer.encode("yes no", add_special=False).tolist():
        matcher.advance(token)
        states.append(matcher.finished)
    assert states == [False] * (len(states) - 1) + [True]
    assert allowed(matcher) == [tokenizer.eos_id]


def test_an_end_token_finishes_where_more_may_follow(known):
    tokenizer, masks = known
    matcher = masks.compile(Constraint(kind="regex", value="a*")).start()
    assert tokenizer.eos_id in allowed(matcher)
    matcher.advance(tokenizer.eos_id)
    assert matcher.finished


def test_special_and_padding_ids_are_never_allowed(known):
    tokenizer, masks = known
    matcher = masks.compile(Constraint(kind="regex", value="(.|\n)+")).start()
    assert len(matcher.bits()) == -(-(tokenizer.vocabulary_size + PADDING) // 32)
    ids = allowed(matcher)
    assert tokenizer.bos_id not in ids
    assert max(ids) < tokenizer.vocabulary_size
    assert len(ids) > 200


def test_matchers_of_one_constraint_are_apart(known):
    tokenizer, masks = known
    compiled = masks.compile(Constraint(kind="choice", value=("yes", "no")))
    one, two = compiled.start(), compiled.start()
    before = allowed(two)
    one.advance(tokenizer.encode("y", add_special=False).tolist()[0])
    assert allowed(two) == before
    assert allowed(one) != before
    with pytest.raises(InternalError):
        two.advance(tokenizer.encode("x", add_special=False).tolist()[0])


@pytest.mark.parametrize(
    ("kind", "value", "word"),
    [
        ("choice", (), "no text"),
        ("choice", ("a", ""), "no text"),
        ("choice", ("\ud800",), "surrogate"),
        ("choice", "abc", "no text"),
        ("regex", ("a",), "not one string"),
        ("regex", "(", "unclosed"),
        ("regex", "a(?=b)", "look"),
        ("regex", r"(a)\1", "backreference"),
        ("regex", r"[^\d\D]", "no text fits"),
        ("regex", "x" * (module.LONGEST + 1), "longer"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", "[]", "neither"),
        ("json_schema", "false", "refused"),
        ("json_schema", '{"type": "foo"}', "foo"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"$ref": "#"}', "no text fits"),
        ("json_schema", '{"$ref": "http://localhost/schema"}', "localhost"),
        ("json_schema", '{"items":' * 3000 + "{}" + "}" * 3000, "recursion"),
    ],
)
def test_what_cannot_be_held_is_refused_with_a_remedy(known, kind, value, word):
    for _ in range(2):  # the second time from the store
        with pytest.raises(CallerError, match=word) as caught:
            known[1].compile(Constraint(kind=kind, value=value))
        assert caught.value.remedy
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "complex_by_then"),
    [
        ("((a{1,100}){1,100}){1,100}", True),
        ("(((.{0,50}){0,50}){0,50}){0,50}", True),
        ("a{200000}", True),
        ("(.*a.{30}){20}", False),
        ("(a|aa)*b{1000}", False),
    ],
)
def test_hostile_patterns_end(known, pattern, complex_by_then):
    """Each is walked for 40 tokens, or fails on the way as the caller's error."""
    tokenizer, masks = known
    token = tokenizer.token_to_id("a")

    def walk() -> None:
        matcher = masks.compile(Constraint(kind="regex", value=pattern)).start()
        for _ in range(40):
            if token not in allowed(matcher):
                return
            matcher.advance(token)

    if complex_by_then:
        with pytest.raises(CallerError, match="complex"):
            walk()
    else:
        walk()


def test_compiled_once(known, monkeypatch):
    built = []
    masks = compiler(known[0])
    real = MaskCompiler._build

    def counted(self, constraint, cap):
        built.append(constraint)
        return real(self, constraint, cap)

    monkeypatch.setattr(MaskCompiler, "_build", counted)
    monkeypatch.setattr(module, "KEPT", 2)
    choices = [Constraint(kind="choice", value=(word,)) for word in ("yes", "no", "a")]
    first = masks.compile(choices[0])
    assert masks.compile(Constraint(kind="choice", value=("yes",))) is first
    masks.compile(choices[1])
    masks.compile(choices[0])
    masks.compile(choices[2])  # the second goes: it was used longest ago
    assert masks.compile(choices[0]) is first
    masks.compile(choices[1])
    assert [constraint.value for constraint in built] == [("yes",), ("no",), ("a",), ("no",)]


def test_tokens_are_spelled_as_they_decode(known):
    """Each token's bytes are what llguidance's own reading of the pipeline makes of them."""
    tokenizer, masks = known
    masks.compile(Constraint(kind="choice", value=("a",)))
    peer = llguidance.LLTokenizer(tokenizer.backend.to_str())
    for token in range(tokenizer.vocabulary_size):
        assert masks._tokenizer.decode_bytes([token]) == peer.decode_bytes([token])
        assert masks._tokenizer.is_special_token(token) == peer.is_special_token(token)


def test_a_tokenizer_of_unknown_bytes_is_refused():
    masks = MaskCompiler(lambda: word_piece().backend, 9, [0])
    with pytest.raises(CallerError, match="not known"):
        masks.compile(Constraint(kind="choice", value=("a",)))


def test_time_cap():
    """A compilation that does not end is left behind after its time, and the next one is not held up."""
    end = threading.Event()
    with pytest.raises(CallerError, match="took more than"):
        module._within(end.wait, 0.01, "regex")
    assert module._within(lambda: 7, 60.0, "regex") == 7
    end.set()
