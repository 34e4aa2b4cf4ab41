"""How long answers are expected to be, before any of them is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shoal.core.request import Constraint, SamplingParams
from shoal.jobs.spool import unpack

if TYPE_CHECKING:
    from shoal.engine.model import TextModel

KNOWN = 4096


class Expectation(NamedTuple):
    """What a plan takes for granted of one row's answers.

    tokens: of each answer, at least 1. bound: no answer can have more. copies: answers. blind: the prompt's
    own tokens are scored, so all of them are computed.
    """

    tokens: int
    bound: bool
    copies: int
    blind: bool


class AnswerLengths:
    """Expected lengths from sampling parameters alone; equal ones are looked at once.

    Args:
        asked: tokens that the caller expects of an answer that may end by itself, None if unknown: then
            ``max_tokens`` bounds it.
    """

    def __init__(self, model: TextModel, asked: int | None) -> None:
        self._model = model
        self._asked = asked
        self._known: dict[bytes, Expectation] = {}

    def of(self, packed: bytes) -> Expectation:
        """The row's parameters as ``spool.pack`` wrote them; their ``max_tokens`` is a number."""
        found = self._known.get(packed)
        if found is None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            found = self._known[packed] = self._expect(unpack(packed))
        return found

    def _expect(self, params: SamplingParams) -> Expectation:
        most = params.max_tokens or self._model.max_model_len
        tokens, bound = most, True
        if params.constraint is not None and params.constraint.kind == "choice":
            tokens, bound = self._of_choice(params.constraint), False
        elif self._asked is not None:
            tokens, bound = self._asked, False
        tokens = min(max(tokens, params.min_tokens, 1), most)
        return Expectation(tokens, bound or tokens == most, params.n, params.prompt_logprobs is not None)

    def _of_choice(self, constraint: Constraint) -> int:
        """The mean over the choices. An answer ends with the last token of its text, except where another
        choice goes on from there: then an end token says that it does not."""
        texts = [text for text in constraint.value if isinstance(text, str)]
        counts = [len(ids) for ids in self._model.tokenizer.encode_batch(texts, add_special=False)]
        open_ended = sum(any(other != text and other.startswith(text) for other in texts) for text in texts)
        return max(1, round((sum(counts) + open_ended) / len(counts)))
