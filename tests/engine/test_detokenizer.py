from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engine import detokenizer
from shoal.engine.detokenizer import StopStrings, StreamDecoder, decode
from shoal.engine.null_model import byte_tokenizer
from shoal.models.tokenizer import Tokenizer
from tests.engine.toy_tokenizers import TEXTS, byte_fallback, byte_level, metaspace, word_piece
from tests.sizes import size

KINDS = {
    "byte-level": byte_level(),
    "byte-fallback": byte_fallback(),
    "byte-fallback-strip": byte_fallback(strip=True),
    "word-piece": word_piece(),
    "metaspace": metaspace(),
    "no-decoder": metaspace(decoder=False),
    "null-model": byte_tokenizer(),
}
REAL = [*TEXTS, "  two  spaces ", "🏳️‍🌈 e\u0301 \u200d", "한국어 текст\n\ttab", "�", "a�b", "𝔘𝔫𝔦", ""]


def in_pieces(tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip_special: bool) -> list[str]:
    stream = StreamDecoder(tokenizer, skip_special)
    pieces, start = [], 0
    for cut in [*cuts, len(ids)]:
        pieces.append(stream.push(ids[start : start + cut]))
        start += cut
    return [*pieces, stream.push(ids[start:]), stream.flush()]


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)
@settings(deadline=None, max_examples=size(80, 2000))
@given(data=st.data())
def test_pieces_join_to_the_whole(tokenizer, data):
    """Random ids, unknown ones and specials among them, from wide and narrow choices (long byte runs)."""
    top = tokenizer.vocabulary_size + (2 if isinstance(tokenizer, Tokenizer) else 0)
    pool = data.draw(
        st.one_of(st.just(range(top)), st.lists(st.integers(0, top - 1), min_size=1, max_size=4))
    )
    ids = data.draw(st.lists(st.sampled_from(pool), max_size=60))
    cuts = data.draw(st.lists(st.integers(0, 4), max_size=60))
    skip = data.draw(st.booleans())
    assert "".join(in_pieces(tokenizer, ids, cuts, skip)) == decode(tokenizer, ids, skip)


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_fallback(), byte_fallback(strip=True)])
@pytest.mark.parametrize("text", REAL)
def test_no_half_character_of_real_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special=False).tolist()
    whole = decode(tokenizer, ids)
    pieces = in_pieces(tokenizer, ids, [1] * len(ids), True)
    assert "".join(pieces) == whole
    if "�" not in text:
        assert all("�" not in piece for piece in pieces)


def test_text_comes_as_soon_as_it_is_settled():
    tokenizer = byte_level()
    stream = StreamDecoder(tokenizer)
    ids = [tokenizer.encode(letter, add_special=False).tolist() for letter in "a😀bé"]
    assert stream.push(ids[0]) == "a"
    first, *rest = tokenizer.backend.encode("𝔘").ids
    assert (stream.push([first]), stream.push(rest)) == ("", "𝔘")
    assert stream.push(ids[1] + ids[2]) == "😀b"
    assert stream.flush() == ""


def test_a_run_of_byte_tokens_waits_for_its_end():
    """The decoder reads it as a whole, so one bad byte at its end turns all of it into U+FFFD."""
    tokenizer = byte_fallback()
    emoji = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "😀".encode()]
    a = tokenizer.token_to_id("a")
    stream = StreamDecoder(tokenizer)
    assert [stream.push([token]) for token in [*emoji, a]] == ["", "", "", "", "😀a"]
    stream = StreamDecoder(tokenizer)
    assert [stream.push([token]) for token in [*emoji, emoji[0], a]] == ["", "", "", "", "", "�" * 5 + "a"]


def test_work_a_token_does_not_grow_with_the_answer(monkeypatch):
    """Ids decoded in all, counted: for text, and for bytes that never become text."""
    for tokenizer, ids in [
        (byte_level(), byte_level().encode("yes no " * 100, add_special=False).tolist()),
        (byte_level(), [byte_level().encode("😀", add_special=False).tolist()[0]] * 700),
        (byte_fallback(), [3 + 0xF0] * 700),
    ]:
        decoded = 0
        real = StreamDecoder._decode

        def counted(self, window, real=real):
            nonlocal decoded
            decoded += len(window)
            return real(self, window)

        monkeypatch.setattr(StreamDecoder, "_decode", counted)
        assert "".join(in_pieces(tokenizer, ids, [1] * len(ids), True)) == decode(tokenizer, ids)
        monkeypatch.setattr(StreamDecoder, "_decode", real)
        assert decoded < 4 * detokenizer._LONG_WINDOW * len(ids)


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: read letter by letter until the text ends with a stop string, the longest such."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            hit = max(found, key=len)
            return text[: end - len(hit)], hit
    return text, None


@settings(deadline=None, max_examples=size(300, 20000))
@given(
    st.text("ab", max_size=24),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    st.lists(st.integers(0, 4), max_size=24),
)
def test_stop_strings_across_any_cut(text, stops, cuts):
    matcher = StopStrings(stops)
    out, hit, start = "", None, 0
    for cut in [*cuts, len(text)]:
        emitted, hit = matcher.push(text[start : start + cut])
        out += emitted
        start += cut
        assert hit or not any(stop.startswith(out[-1:]) and len(stop) == 1 for stop in stops if out)
        if hit:
            break
    assert (out + matcher.flush(), hit) == first_stop(text, stops)


def test_only_what_may_be_a_stop_is_held():
    matcher = StopStrings(["###"])
    assert [matcher.push(piece) for piece in ["a#", "b", "##", "c#"]] == [
        ("a", None),
        ("#b", None),
        ("", None),
        ("##c", None),
    ]
    assert matcher.push("##never") == ("", "###")
