"""From logits to tokens. Each row's token is a function of its logits, its request and its own past alone.

Order of work on a row: logit bias, penalties, end tokens barred before ``min_tokens``, grammar mask; then
the largest logit (ties to the lowest id), or temperature, top-k, top-p, min-p and a Gumbel-max draw with
counter-based noise. A step of plain greedy rows is one pass over the logits; other rows are copied in
chunks of bounded size, so the logits themselves are never changed and never copied whole.

Log-probabilities are the log-softmax of the model's own logits: before bias, penalties, masks and
temperature. Rank 1 is the best token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shoal.core.errors import CallerError, InternalError, ShoalError
from shoal.core.plan import SAMPLE
from shoal.core.request import Request, SamplingParams
from shoal.engine.masks import MaskCompiler, Matcher
from shoal.engine.tensors.noise import gumbel, noise_keys
from shoal.engine.tensors.truncate import candidates

CHUNK_ELEMENTS = 1 << 20
"""Logits copied at once: 4 MiB of float32, which a cache holds."""

COLDEST = 1e-5
"""Temperatures below this are greedy: dividing by them says nothing more and costs precision."""

Index = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class SampledRows:
    """What came of n rows.

    tokens: (n,) int32; of a scored row its target, of a failed row 0. margins: (n,) float32 or None, the
    distance of the two best final (perturbed) logits, inf where nothing was chosen. complete: (n,) bool
    or None; True where the row's grammar is at its end after this token and nothing may follow.
    logprob, rank: (m,) float32 and int32 of the m rows that wanted log-probabilities, in row order;
    top_ids, top_logprobs: (m, K) int32 and float32, best first, K the most any of their requests asks.
    All four are None where no row wanted any. failures: row -> what went wrong with that row alone.
    """

    tokens: npt.NDArray[np.int32]
    margins: npt.NDArray[np.float32] | None = None
    complete: npt.NDArray[np.bool_] | None = None
    logprob: npt.NDArray[np.float32] | None = None
    rank: npt.NDArray[np.int32] | None = None
    top_ids: npt.NDArray[np.int32] | None = None
    top_logprobs: npt.NDArray[np.float32] | None = None
    failures: dict[int, Exception] = field(default_factory=dict)


class _SeenTokens:
    """The tokens of one sequence that penalties look at: ids, and how often each stands in the answer."""

    def __init__(self, params: SamplingParams, prompt: npt.NDArray[np.int32], vocabulary: int) -> None:
        self.repetition = params.repetition_penalty
        self.presence = params.presence_penalty
        self.frequency = params.frequency_penalty
        ids = np.unique(prompt) if self.repetition != 1.0 else prompt[:0]
        self.ids = ids[(ids >= 0) & (ids < vocabulary)].astype(np.int64)
        self.counts = np.zeros(len(self.ids), dtype=np.float32)
        self.size = len(self.ids)
        self.place = {int(token): place for place, token in enumerate(self.ids)}

    def add(self, token: int) -> None:
        place = self.place.setdefault(token, self.size)
        if place == self.size:
            if self.size == len(self.ids):
                self.ids = np.resize(self.ids, max(16, 2 * self.size))
                self.counts = np.resize(self.counts, max(16, 2 * self.size))
            self.ids[place], self.counts[place] = token, 0.0
            self.size += 1
        self.counts[place] += 1.0

    def apply(self, row: torch.Tensor) -> None:
        """logit / r or * r by sign, then - frequency * count - presence * (count > 0)."""
        if not self.size:
            return
        ids = torch.from_numpy(self.ids[: self.size]).to(row.device)
        counts = torch.from_numpy(self.counts[: self.size]).to(row.device)
        logits = row[ids]
        logits = torch.where(logits > 0, logits / self.repetition, logits * self.repetition)
        row[ids] = logits - self.frequency * counts - self.presence * (counts > 0)


_COLUMNS: dict[str, tuple[Any, Any]] = {
    "temperature": (np.float32, 0.0),
    "top_k": (np.int64, 0),
    "top_p": (np.float32, 1.0),
    "min_p": (np.float32, 0.0),
    "seed": (np.uint64, 0),
    "min_tokens": (np.int64, 0),
    "top": (np.int32, 0),
    "changed": (np.bool_, False),
    "truncated": (np.bool_, False),
}


class Sampler:
    """Sampling state of every open slot, and the step that turns logits into tokens.

    Args:
        vocabulary: columns of the logits.
        device: where the logits live.
        masks: compiles the constraints of requests; without it a constrained request is refused.
    """

    def __init__(
        self, vocabulary: int, device: str | torch.device = "cpu", masks: MaskCompiler | None = None
    ) -> None:
        self.vocabulary = vocabulary
        self.device = torch.device(device)
        self.masks = masks
        self._columns = {name: np.full(64, value, dtype) for name, (dtype, value) in _COLUMNS.items()}
        self._bias: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._seen: dict[int, _SeenTokens] = {}
        self._ends: dict[int, torch.Tensor] = {}
        self._matchers: dict[int, Matcher] = {}
        self._all_ids = torch.arange(vocabulary, dtype=torch.int32, device=self.device)

    def open(self, slot: int, request: Request) -> None:
        """A sequence moves into ``slot``.

        Raises:
            CallerError: a biased id lies outside the vocabulary, or the constraint cannot be compiled.
        """
        params = request.params
        self.close(slot)
        bias = self._bias_of(params)
        matcher = self._matcher_of(params)
        ends = self._ends_of(request) if params.min_tokens else []
        penalised = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (
            1,
            0,
            0,
        )
        if slot >= len(self._columns["seed"]):
            self._grow(slot + 1)
        if bias is not None:
            self._bias[slot] = bias
        if matcher is not None:
            self._matchers[slot] = matcher
        if ends:
            self._ends[slot] = torch.tensor(ends, device=self.device)
        if penalised:
            self._seen[slot] = _SeenTokens(params, request.prompt, self.vocabulary)
        top_k = params.top_k if 0 < params.top_k < self.vocabulary else self.vocabulary
        greedy = params.temperature < COLDEST or top_k == 1
        values = {
            "temperature": 0.0 if greedy else params.temperature,
            "top_k": top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "seed": request.seed % 2**64,
            "min_tokens": params.min_tokens if ends else 0,
            "top": max(params.logprobs or 0, params.prompt_logprobs or 0),
            "changed": bias is not None or matcher is not None or bool(ends) or penalised,
            "truncated": top_k < self.vocabulary or params.top_p < 1.0 or params.min_p > 0.0,
        }
        for name, value in values.items():
            self._columns[name][slot] = value

    def close(self, slot: int) -> None:
        """The sequence in ``slot`` is gone; closing an empty slot does nothing."""
        for sparse in (self._bias, self._seen, self._ends, self._matchers):
            sparse.pop(slot, None)

    def plain(self, slots: Index, target: Index) -> bool:
        """Whether every one of these rows takes the largest of its logits as they are."""
        columns = self._columns
        chosen = (target == SAMPLE) & (columns["temperature"][slots] == 0.0) & ~columns["changed"][slots]
        return bool(chosen.all())

    def take(self, best: npt.NDArray[np.float32], tokens: npt.NDArray[np.int32]) -> SampledRows:
        """Plain rows whose largest logits are found already: what ``sample`` would say of them."""
        finite = np.isfinite(best)
        if finite.all():
            return SampledRows(tokens, failures={})
        failures: dict[int, Exception] = {int(row): _not_finite() for row in np.flatnonzero(~finite)}
        return SampledRows(np.where(finite, tokens, 0).astype(np.int32), failures=failures)

    def sample(
        self,
        logits: torch.Tensor,
        slots: Index,
        index: Index,
        target: Index,
        want_logprobs: npt.NDArray[np.bool_],
        record_margins: bool = False,
    ) -> SampledRows:
        """Choose or score one token a row.

        Args:
            logits: shape (n, V), float32; never changed.
            slots: shape (n,), the open slot of each row. index: (n,), which token of the answer this is,
                0 for the first. target: (n,), SAMPLE, or the known id that is only scored: no noise, no
                change of state. want_logprobs: (n,), which rows report log-probabilities.
        """
        chosen = target == SAMPLE
        tokens = np.where(chosen, 0, target).astype(np.int32)
        margins = np.full(len(tokens), np.inf, dtype=np.float32) if record_margins else None
        failures: dict[int, Exception] = {}
        greedy = self._columns["temperature"][slots] == 0.0
        plain = chosen & greedy & ~self._columns["changed"][slots]
        if plain.any():
            self._choose_plain(logits, np.flatnonzero(plain), tokens, margins, failures)
        truncated = self._columns["truncated"][slots]
        for group in (greedy & ~plain, ~greedy & truncated, ~greedy & ~truncated):
            rows = np.flatnonzero(chosen & group)
            step = max(1, CHUNK_ELEMENTS // self.vocabulary)
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                work = logits.index_select(0, torch.from_numpy(part).to(logits.device))
                final, ids = self._final_logits(work, slots[part], index[part], part, failures)
                self._pick(final, ids, part, tokens, margins)
        tokens[list(failures)] = 0
        complete = self._advance(np.flatnonzero(chosen), slots, tokens, failures)
        scores = self._score(logits, slots, tokens, np.flatnonzero(want_logprobs), failures)
        return SampledRows(tokens, margins, complete, *scores, failures=failures)

    def _choose_plain(
        self,
        logits: torch.Tensor,
        rows: Index,
        tokens: npt.NDArray[np.int32],
        margins: npt.NDArray[np.float32] | None,
        failures: dict[int, Exception],
    ) -> None:
        best, ids = logits.max(dim=1)
        values = best.cpu().numpy()[rows]
        tokens[rows] = ids.cpu().numpy()[rows]
        for row in rows[~np.isfinite(values)]:
            failures[int(row)] = _not_finite()
        if margins is not None:
            two = torch.topk(logits, min(2, self.vocabulary), dim=1).values
            margins[rows] = _distance(two)[rows]

    def _final_logits(
        self,
        work: torch.Tensor,
        slots: Index,
        index: Index,
        rows: Index,
        failures: dict[int, Exception],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Perturbed logits (n, m) whose largest wins, and the ids of their columns (None: 0..V-1).

        All rows are greedy, or all truncated, or all neither; ``work`` is overwritten.
        """
        columns = self._columns
        bad: dict[int, Exception] = {int(rows[i]): _not_finite() for i in np.flatnonzero(~_finite_best(work))}
        for i in np.flatnonzero(columns["changed"][slots]):
            try:
                self._change(work[i], int(slots[i]), int(index[i]))
            except ShoalError as error:  # a grammar that grew too complex: this row fails alone
                bad.setdefault(int(rows[i]), error)
                work[i] = 0.0
        for i in np.flatnonzero(~_finite_best(work)):
            bad.setdefault(int(rows[i]), _nothing_left())
        failures.update(bad)
        if columns["temperature"][slots[0]] == 0.0:
            return work, None
        work -= work.amax(dim=1, keepdim=True)
        work /= self._column("temperature", slots)[:, None]
        keys = torch.from_numpy(noise_keys(columns["seed"][slots], index)).to(work.device)
        if not columns["truncated"][slots[0]]:
            return work.add_(gumbel(keys, self._all_ids)), None
        if bad:
            work[[i for i, row in enumerate(rows) if int(row) in bad]] = 0.0
        limits = (self._column(name, slots) for name in ("top_k", "top_p", "min_p"))
        ids, values = candidates(work, *limits)
        return values.add_(gumbel(keys, ids)), ids

    def _change(self, row: torch.Tensor, slot: int, index: int) -> None:
        """Bias, penalties, barred end tokens and grammar on one row of logits, in place."""
        if bias := self._bias.get(slot):
            row[bias[0]] += bias[1]
        if seen := self._seen.get(slot):
            seen.apply(row)
        if index < self._columns["min_tokens"][slot]:
            row[self._ends[slot]] = -torch.inf
        if matcher := self._matchers.get(slot):
            allowed = np.unpackbits(matcher.bits().view(np.uint8), bitorder="little")[: self.vocabulary]
            row.masked_fill_(torch.from_numpy(allowed == 0).to(row.device), -torch.inf)

    def _pick(
        self,
        final: torch.Tensor,
        ids: torch.Tensor | None,
        rows: Index,
        tokens: npt.NDArray[np.int32],
        margins: npt.NDArray[np.float32] | None,
    ) -> None:
        place = final.argmax(dim=1, keepdim=True)
        winner = place if ids is None else ids.gather(1, place)
        tokens[rows] = winner[:, 0].cpu().numpy()
        if margins is not None:
            margins[rows] = _distance(torch.topk(final, min(2, final.shape[1]), dim=1).values)

    def _advance(
        self,
        rows: Index,
        slots: Index,
        tokens: npt.NDArray[np.int32],
        failures: dict[int, Exception],
    ) -> npt.NDArray[np.bool_] | None:
        """Tell penalties and grammars what was chosen; which rows may get no further token."""
        if not self._seen and not self._matchers:
            return None
        complete = np.zeros(len(tokens), dtype=bool)
        for row in rows:
            slot, token = int(slots[row]), int(tokens[row])
            if int(row) in failures:
                continue
            if seen := self._seen.get(slot):
                seen.add(token)
            if matcher := self._matchers.get(slot):
                try:
                    matcher.advance(token)
                    complete[row] = matcher.finished
                except ShoalError as error:
                    failures[int(row)] = error
        return complete if self._matchers else None

    def _score(
        self,
        logits: torch.Tensor,
        slots: Index,
        tokens: npt.NDArray[np.int32],
        rows: Index,
        failures: dict[int, Exception],
    ) -> tuple[Any, Any, Any, Any]:
        """logprob, rank, top_ids and top_logprobs of ``rows``, chunk by chunk."""
        if not len(rows):
            return None, None, None, None
        top = min(int(self._columns["top"][slots[rows]].max()), self.vocabulary)
        parts: list[tuple[npt.NDArray[Any], ...]] = []
        step = max(1, CHUNK_ELEMENTS // self.vocabulary)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            raw = logits.index_select(0, torch.from_numpy(part).to(logits.device))
            ids = torch.from_numpy(tokens[part].astype(np.int64)).to(raw.device)[:, None]
            rank = (raw > raw.gather(1, ids)).sum(dim=1) + 1
            best = torch.topk(raw, top, dim=1).indices
            logprobs = torch.log_softmax(raw, dim=1)
            columns = (logprobs.gather(1, ids)[:, 0], rank, best, logprobs.gather(1, best))
            parts.append(tuple(column.cpu().numpy() for column in columns))
        logprob, ranks, top_ids, top_logprobs = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        for row in rows[np.isnan(logprob)]:
            failures.setdefault(int(row), _not_finite())
        return logprob, ranks.astype(np.int32), top_ids.astype(np.int32), top_logprobs

    def _bias_of(self, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor] | None:
        if not params.logit_bias:
            return None
        for token, value in params.logit_bias.items():
            if not 0 <= token < self.vocabulary:
                raise CallerError(
                    f"logit_bias names token {token}, the vocabulary has {self.vocabulary}",
                    remedy="remove it",
                )
            if not value < np.inf:
                raise CallerError(f"logit_bias of token {token} is {value}", remedy="give a finite number")
        ids = torch.tensor(list(params.logit_bias), dtype=torch.int64, device=self.device)
        values = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=self.device)
        return ids, values

    def _matcher_of(self, params: SamplingParams) -> Matcher | None:
        if params.constraint is None:
            return None
        if self.masks is None:
            raise CallerError(
                "this model has no tokenizer, so choice, regex and json_schema cannot be held",
                remedy="leave the constraint out",
            )
        return self.masks.compile(params.constraint).start()

    def _ends_of(self, request: Request) -> list[int]:
        """The ids that would end this answer."""
        ends = set(request.params.stop_token_ids)
        if not request.params.ignore_eos:
            ends |= set(request.end_ids)
        return sorted(token for token in ends if 0 <= token < self.vocabulary)

    def _grow(self, least: int) -> None:
        size = max(least, 2 * len(self._columns["seed"]))
        for name, (dtype, value) in _COLUMNS.items():
            column = np.full(size, value, dtype)
            column[: len(self._columns[name])] = self._columns[name]
            self._columns[name] = column

    def _column(self, name: str, slots: Index) -> torch.Tensor:
        return torch.from_numpy(self._columns[name][slots]).to(self.device)


def _finite_best(logits: torch.Tensor) -> npt.NDArray[np.bool_]:
    """Whether each row has a largest logit; NaN anywhere in a row makes its largest NaN."""
    best: npt.NDArray[np.float32] = logits.amax(dim=1).cpu().numpy()
    return np.isfinite(best)


def _distance(two: torch.Tensor) -> npt.NDArray[np.float32]:
    """Best less second best, shape (n,); inf where there is no second."""
    values: npt.NDArray[np.float32] = two.cpu().numpy()
    if values.shape[1] < 2:
        return np.full(len(values), np.inf, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        return values[:, 0] - values[:, 1]


def _not_finite() -> InternalError:
    return InternalError(
        "the model's logits are not finite", remedy="report it, with the model and the request"
    )


def _nothing_left() -> CallerError:
    return CallerError(
        "no token is left to choose: bias, min_tokens and constraint exclude every one",
        remedy="loosen one of them",
    )
