"""Result lines: the OpenAI batch output form, with what shoal adds under ``shoal``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.core.errors import ShoalError
from shoal.core.request import Finished, FinishReason, SamplingParams, TokenLogprobs
from shoal.engine.detokenizer import answer_text
from shoal.jobs.results import LINE_START
from shoal.jobs.sampling import shown
from shoal.jobs.spool import CHAT, SpoolRow

if TYPE_CHECKING:
    from shoal.engine.model import TextModel


LEAST_LOGPROB = -9999.0
"""JSON has no minus infinity; this is what OpenAI's API writes for it."""
ERROR_CODES = {"caller": "invalid_request", "operator": "not_available", "us": "internal_error"}

_encode = msgspec.json.Encoder().encode


class AnswerWriter:
    """Turns finished sequences into lines.

    Pieces that many lines share are encoded once. ``created`` and the ids come from the job, so that a
    resumed job writes the very lines that an undisturbed one would have written.
    """

    def __init__(self, model: TextModel, job: str, created: int) -> None:
        self._model = model
        self._job = job
        self._created = created
        self._name = _encode(model.name)
        self._shown: dict[bytes, bytes] = {}

    def answer(self, row: SpoolRow, params: SamplingParams, done: Sequence[Finished], leader: int) -> bytes:
        """The line of a row whose ``n`` sequences have all finished, newline included.

        leader: input line of the row that was computed, where it is not this one.
        """
        mark = self._mark(row.line)
        prompt = memoryview(row.ids).cast("i") if row.ids else ()
        choices = b",".join(
            self._choice(row, params, prompt, index, finished) for index, finished in enumerate(done)
        )
        folded = leader != row.line
        usage = _usage(len(prompt), done)
        body = b'{"id":"%s-%s","object":"%s","created":%d,"model":%s,"choices":[%s],"usage":%s%s}' % (
            b"chatcmpl" if row.kind == CHAT else b"cmpl",
            mark,
            b"chat.completion" if row.kind == CHAT else b"text_completion",
            self._created,
            self._name,
            choices,
            usage,
            self._prompt_logprobs(row, params, done[0]),
        )
        response = b'{"status_code":200,"request_id":"req-%s","body":%s}' % (mark, body)
        return self._line(row, params, response, b"null", done, leader if folded else 0)

    def error(
        self,
        row: SpoolRow,
        params: SamplingParams,
        error: ShoalError,
        done: Sequence[Finished],
        leader: int,
    ) -> bytes:
        """The line of a row that failed at run time."""
        reason: dict[str, Any] = {
            "code": ERROR_CODES.get(error.who, "internal_error"),
            "message": str(error),
            "who": error.who,
        }
        partial = [self._text(finished) for finished in done if len(finished.tokens)]
        if partial:
            reason["partial"] = partial
        return self._line(row, params, b"null", _encode(reason), done, leader if leader != row.line else 0)

    def _mark(self, line: int) -> bytes:
        return b"%s-%d" % (self._job.encode(), line)

    def _line(
        self,
        row: SpoolRow,
        params: SamplingParams,
        response: bytes,
        error: bytes,
        done: Sequence[Finished],
        folded_into: int,
    ) -> bytes:
        extra = b""
        if folded_into:
            extra = b',"folded_into":%d' % folded_into
        if row.model is not None:
            extra += b',"asked_model":' + _encode(row.model)
        if row.columns:
            extra += b',"columns":' + row.columns
        cached = 0 if folded_into else sum(finished.cached for finished in done)
        computed = 0 if folded_into else sum(finished.computed for finished in done)
        return (
            b'%s%s","custom_id":%s,"response":%s,"error":%s,'
            b'"shoal":{"line":%d,"sampling":%s,"cached_tokens":%d,"computed_tokens":%d%s}}\n'
        ) % (
            LINE_START,
            self._mark(row.line),
            _encode(row.id),
            response,
            error,
            row.line,
            self._sampling(row, params),
            cached,
            computed,
            extra,
        )

    def _sampling(self, row: SpoolRow, params: SamplingParams) -> bytes:
        if not params.greedy:
            return _encode(shown(params, row.seed))
        if (known := self._shown.get(row.sampling)) is None:
            if len(self._shown) >= 1024:
                self._shown.clear()
            known = self._shown[row.sampling] = _encode(shown(params, 0))
        return known

    def _text(self, finished: Finished) -> str:
        return answer_text(self._model.tokenizer, finished)

    def _choice(
        self, row: SpoolRow, params: SamplingParams, prompt: Any, index: int, finished: Finished
    ) -> bytes:
        text = self._text(finished)
        reason = b"stop" if finished.reason is FinishReason.STOP else b"length"
        stop = b""
        if finished.stop_reason is not None:
            stop = b',"stop_reason":' + _encode(finished.stop_reason)
        if row.kind == CHAT:
            logprobs = self._chat_logprobs(finished) if params.logprobs is not None else b"null"
            return (
                b'{"index":%d,"message":{"role":"assistant","content":%s},"logprobs":%s,"finish_reason":"%s"%s}'
                % (index, _encode(text), logprobs, reason, stop)
            )
        logprobs = b"null"
        if params.logprobs is not None:
            logprobs = self._completion_logprobs(row, prompt, params, finished)
        if row.echo is not None:
            text = row.echo + text
        return b'{"index":%d,"text":%s,"logprobs":%s,"finish_reason":"%s"%s}' % (
            index,
            _encode(text),
            logprobs,
            reason,
            stop,
        )

    def _token(self, token: int) -> str:
        return self._model.tokenizer.decode([token], False)

    def _chat_logprobs(self, finished: Finished) -> bytes:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = self._token(token)
            return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}

        content = [
            {
                **entry(scored.token, scored.logprob),
                "top_logprobs": [entry(token, logprob) for token, logprob in scored.top],
            }
            for scored in finished.logprobs or ()
        ]
        return _encode({"content": content})

    def _completion_logprobs(
        self, row: SpoolRow, prompt: Any, params: SamplingParams, finished: Finished
    ) -> bytes:
        """Parallel lists over the tokens of the answer, and of the prompt before them where it is echoed."""
        scored: list[TokenLogprobs | None] = list(finished.logprobs or ())
        tokens = [token.token for token in finished.logprobs or ()]
        if row.echo is not None:
            before = finished.prompt_logprobs or (None,) * len(prompt)
            scored = [*before, *scored]
            tokens = [*prompt, *tokens]
        texts = [self._token(token) for token in tokens]
        offsets, end = [], 0
        for token in tokens:
            offsets.append(end)
            end += len(self._model.tokenizer.decode([token], params.skip_special_tokens))
        top = [None if token is None else self._alternatives(token) for token in scored]
        return _encode(
            {
                "tokens": texts,
                "token_logprobs": [None if token is None else finite(token.logprob) for token in scored],
                "top_logprobs": top if params.logprobs else None,
                "text_offset": offsets,
            }
        )

    def _alternatives(self, scored: TokenLogprobs) -> dict[str, float]:
        """By text, the token itself among them; of two ids with one text the better one counts."""
        found = {self._token(other): finite(logprob) for other, logprob in reversed(scored.top)}
        found.setdefault(self._token(scored.token), finite(scored.logprob))
        return found

    def _prompt_logprobs(self, row: SpoolRow, params: SamplingParams, finished: Finished) -> bytes:
        """Only where the row asked for them by that name; an echo shows them in its own lists."""
        if params.prompt_logprobs is None or row.echo is not None or finished.prompt_logprobs is None:
            return b""
        listed = [
            None
            if token is None
            else {
                str(other): {"logprob": finite(logprob), "decoded_token": self._token(other)}
                for other, logprob in (*token.top, (token.token, token.logprob))
            }
            for token in finished.prompt_logprobs
        ]
        return b',"prompt_logprobs":' + _encode(listed)


def _usage(prompt: int, done: Sequence[Finished]) -> bytes:
    answer = sum(len(finished.tokens) for finished in done)
    return (
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
        b'"prompt_tokens_details":{"cached_tokens":%d}}'
    ) % (prompt, answer, prompt + answer, min(prompt, done[0].cached))


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB


def job_mark(identity: Any) -> str:
    """Ten characters that name a job in the ids of its results."""
    return blake2b(_encode(identity), digest_size=5).hexdigest()
