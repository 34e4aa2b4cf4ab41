"""What an answer needs beside its tokens: log-probabilities, and the text where stop strings are watched.

Only sequences that ask for either have an object here; for all others an answer is read off the columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.core.errors import CallerError, ShoalError
from shoal.core.plan import I32, ScoredTokens, StepPlan
from shoal.core.request import Finished, FinishReason, Request, TokenLogprobs
from shoal.core.table import SequenceTable
from shoal.engine.detokenizer import StopStrings, StreamDecoder
from shoal.engine.model import TextModel


@dataclass(slots=True)
class _Scores:
    """Log-probabilities by index of the token in the sequence; index 0 has none."""

    prompt: list[TokenLogprobs | None]
    output: list[TokenLogprobs] = field(default_factory=list)


@dataclass(slots=True)
class _Watch:
    decoder: StreamDecoder
    stops: StopStrings
    text: list[str] = field(default_factory=list)
    hit: str | None = None

    def push(self, text: str) -> str | None:
        emitted, self.hit = self.stops.push(text)
        self.text.append(emitted)
        return self.hit

    def close(self) -> str:
        """The whole text, what was held back included unless a stop string ended it."""
        if self.hit is None and self.push(self.decoder.flush()) is None:
            self.text.append(self.stops.flush())
        return "".join(self.text)


class Answers:
    """Answers in the making, by slot."""

    def __init__(self, table: SequenceTable, model: TextModel | None) -> None:
        self.table = table
        self.model = model
        self._scores: dict[int, _Scores] = {}
        self._watches: dict[int, _Watch] = {}

    def open(self, slot: int, request: Request) -> None:
        """Raises CallerError when stop strings are asked of a model without a tokenizer."""
        params = request.params
        if params.stop:
            if self.model is None:
                raise CallerError(
                    "stop strings need a tokenizer, this engine has none", remedy="use stop_token_ids"
                )
            decoder = StreamDecoder(self.model.tokenizer, params.skip_special_tokens)
            self._watches[slot] = _Watch(decoder, StopStrings(params.stop))
        if params.logprobs is not None or params.prompt_logprobs is not None:
            self._scores[slot] = _Scores([None] * len(request.prompt))

    def close(self, slot: int) -> None:
        self._scores.pop(slot, None)
        self._watches.pop(slot, None)

    def score(self, plan: StepPlan, scored: ScoredTokens, tokens: I32, failed: set[int]) -> None:
        """Keep what a step scored for slots that have not ``failed``; ``tokens`` are the step's emitted or
        scored ids, by emitting row."""
        rows = plan.emitting_rows()
        runs = plan.run_of_row()
        token_of_row = dict(zip(rows.tolist(), tokens.tolist()))
        for i, row in enumerate(scored.row.tolist()):
            slot = int(plan.sequence[runs[row]])
            scores = self._scores.get(slot)
            if scores is None or slot in failed:
                continue
            params = self.table.request(slot).params
            index = int(plan.position[row]) + 1
            in_prompt = index < len(scores.prompt)
            width = (params.prompt_logprobs if in_prompt else params.logprobs) or 0
            top = zip(scored.top_ids[i, :width].tolist(), scored.top_logprobs[i, :width].tolist())
            entry = TokenLogprobs(
                token_of_row[row], float(scored.logprob[i]), int(scored.rank[i]), tuple(top)
            )
            if in_prompt:
                scores.prompt[index] = entry
            else:
                scores.output.append(entry)

    def read(self, slots: I32, tokens: I32, ended: dict[int, int | None]) -> list[tuple[int, str]]:
        """Push new tokens into watched texts; returns (slot, stop string) where one appeared.

        ``ended`` maps slots that end in this step to the token id that ended them, which is no text.
        """
        hits: list[tuple[int, str]] = []
        if not self._watches:
            return hits
        new = dict(zip(slots.tolist(), tokens.tolist()))
        for slot in self._watches.keys() & new.keys():
            watch = self._watches[slot]
            if ended.get(slot) is not None:
                continue
            text = watch.decoder.push([new[slot]])
            if self.table.known[slot] <= self.table.floor[slot]:
                watch.text.append(text)
            elif (hit := watch.push(text)) is not None:
                hits.append((slot, hit))
        return hits

    def finished(
        self,
        slot: int,
        reason: FinishReason,
        stop: int | str | None,
        now: float,
        error: ShoalError | None,
    ) -> Finished:
        """The answer of the sequence in ``slot`` as it stands."""
        table = self.table
        request = table.request(slot)
        watch, scores = self._watches.get(slot), self._scores.get(slot)
        params = request.params
        text = watch.close() if watch else None
        if watch and watch.hit and reason is FinishReason.LENGTH:
            reason = FinishReason.STOP
        return Finished(
            handle=int(table.handle[slot]),
            request=request,
            tokens=table.ids(slot, int(table.prompt[slot])).copy(),
            reason=reason,
            text=text,
            stop_reason=watch.hit if watch and watch.hit else stop,
            error=error,
            logprobs=tuple(scores.output) if scores and params.logprobs is not None else None,
            prompt_logprobs=tuple(scores.prompt) if scores and params.prompt_logprobs is not None else None,
            cached=int(table.cached[slot]),
            computed=table.computed_rows(slot),
            preemptions=int(table.preemptions[slot]),
            lost=int(table.lost[slot]),
            arrived=float(table.arrived[slot]),
            admitted=float(table.admitted[slot]),
            first_token=float(table.first_token[slot]),
            ended=now,
        )
