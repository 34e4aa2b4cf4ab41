"""Before anything runs: every row is read, checked and tokenised once, and written to the spool."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from shoal.core.errors import CallerError, OperatorError, ShoalError
from shoal.core.request import Constraint, Ids
from shoal.jobs.ending import Interrupted
from shoal.jobs.folding import DIGEST_BYTES, ID_BYTES, answer_digest, fold, id_digest, lone_digest, repeats
from shoal.jobs.job import Job, Stopping, Watcher
from shoal.jobs.quarantine import Quarantine
from shoal.jobs.rows import Asked, RowReader
from shoal.jobs.sampling import Sampler, noise_seed, shortened
from shoal.jobs.sources import Raw, Source
from shoal.jobs.spool import CHAT, COMPLETION, NOBODY, SpoolRow, SpoolWriter
from shoal.jobs.templates import TokenIds

if TYPE_CHECKING:
    from shoal.engine.model import TextModel


INT32 = np.iinfo(np.int32)
BATCH_ROWS = 256
BATCH_BYTES = 1 << 20
CONSTRAINTS = 4096
CHARACTERS = 16
"""More than a token has on average in any text: a prompt with so many for each token that the model takes is
almost surely too long."""


@dataclass(frozen=True)
class Prepared:
    """rows: good and bad ones together; folded: good rows answered by another row's computation."""

    rows: int
    bad: int
    folded: int
    tokens: int
    sha256: str
    spool_bytes: int


class Preflight:
    """One pass over the input. Holds 36 bytes a row while it reads, and sorts at its end."""

    def __init__(self, job: Job, model: TextModel, watcher: Watcher, stopping: Stopping) -> None:
        self._job = job
        self._model = model
        self._watcher = watcher
        self._stopping = stopping
        self._reader = RowReader(Sampler(job.defaults), job.layout)
        self._constraints: dict[Constraint, CallerError | None] = {}
        self._digests = bytearray()
        self._ids = bytearray()
        self._rows = 0
        self._tokens = 0

    def run(self, source: Source) -> Prepared:
        """Fill spool and quarantine file.

        Raises:
            OperatorError: a file cannot be read or written; or a row is bad and the job is strict.
            Interrupted: asked to stop; the next run begins the preflight again.
        """
        self._quarantine = Quarantine(self._job.files)
        self._spool = SpoolWriter(self._job.files.spool)
        try:
            for batch in self._batches(source):
                if self._stopping():
                    raise Interrupted
                self._take(batch)
                self._watcher.preparing(
                    source.done, source.size, self._rows, self._quarantine.rows, self._tokens
                )
            return self._finish(source)
        finally:
            self._quarantine.close()
            self._spool.close()

    def _batches(self, source: Source) -> Iterator[list[Raw]]:
        batch: list[Raw] = []
        size = 0
        limit = self._job.limit
        for raw in source.rows():
            if limit is not None and self._rows >= limit:
                break
            self._rows += 1
            batch.append(raw)
            size += len(raw.data) if isinstance(raw.data, bytes) else 1024
            if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _take(self, batch: list[Raw]) -> None:
        asked: list[Asked] = []
        texts: dict[bool, list[str]] = {True: [], False: []}
        bad: list[tuple[Raw, ShoalError]] = []
        raws: list[Raw] = []
        for raw in batch:
            try:
                row = self._reader.read(raw)
                self._read_prompt(row)
            except CallerError as error:
                bad.append((raw, error))
                continue
            asked.append(row)
            raws.append(raw)
            if isinstance(row.prompt, str):
                texts[row.chat].append(row.prompt)
        encoded = {chat: iter(self._encode(listed, not chat)) for chat, listed in texts.items()}
        for raw, row in zip(raws, asked):
            try:
                ids = next(encoded[row.chat]) if isinstance(row.prompt, str) else _ids(row.prompt)
                if isinstance(ids, CallerError):
                    raise ids
                self._write(row, ids)
            except CallerError as error:
                bad.append((raw, error))
        for raw, refusal in sorted(bad, key=lambda entry: entry[0].line):
            self._quarantine.add(raw.line, refusal, raw.data, _id_in(raw))

    def _encode(self, texts: list[str], special: bool) -> list[Ids | CallerError]:
        """Ids of each text, in parallel; where one cannot be encoded, its refusal in its place."""
        if not texts:
            return []
        try:
            return list(self._model.tokenizer.encode_batch(texts, add_special=special))
        except CallerError as error:
            if len(texts) == 1:
                return [error]
            return [self._encode([text], special)[0] for text in texts]

    def _read_prompt(self, row: Asked) -> None:
        if row.messages is not None:
            row.prompt = self._model.render(
                row.messages, {**self._job.template_arguments, **(row.template_kwargs or {})}
            )
            row.messages = None
        if isinstance(row.prompt, str):
            self._refuse_endless(row.prompt)
        constraint = row.sampling.params.constraint
        if constraint is not None:
            self._check_constraint(constraint)

    def _refuse_endless(self, prompt: str) -> None:
        """A prompt far too long is known by its beginning; tokenising megabytes would take gigabytes."""
        longest = self._model.max_model_len
        beginning = CHARACTERS * longest
        if len(prompt) > beginning:
            found = self._encode([prompt[:beginning]], False)[0]
            # The token at the cut may be longer in the whole text, and so make a few others disappear.
            if not isinstance(found, CallerError) and len(found) > longest + CHARACTERS:
                raise _too_long(f"more than {longest}", longest)

    def _check_constraint(self, constraint: Constraint) -> None:
        if constraint not in self._constraints:
            if len(self._constraints) >= CONSTRAINTS:
                self._constraints.clear()
            self._constraints[constraint] = None
            try:
                self._model.check_constraint(constraint)
            except CallerError as error:
                self._constraints[constraint] = error
        refusal = self._constraints[constraint]
        if refusal is not None:
            raise refusal

    def _write(self, row: Asked, ids: Ids) -> None:
        model = self._model
        if len(ids) == 0:
            raise CallerError("the prompt is empty", remedy="give at least one token")
        room = model.max_model_len - len(ids)
        if room < 1:
            raise _too_long(str(len(ids)), model.max_model_len)
        sampling = shortened(row.sampling, room)
        _check_tokens(row, ids, sampling.params.logit_bias, sampling.params.stop_token_ids, model.vocabulary)
        greedy = sampling.params.greedy
        if greedy:
            seed = 0
        else:
            seed = noise_seed(self._job.seed, row.id) if row.seed is None else row.seed % 2**64
        packed = ids.tobytes()
        self._spool.append(
            SpoolRow(
                line=row.line,
                id=row.id,
                kind=CHAT if row.chat else COMPLETION,
                ids=packed,
                sampling=sampling.packed,
                seed=seed,
                echo=self._echo(row, ids) if row.echo else None,
                columns=row.columns,
                model=row.model if row.model != model.name else None,
            )
        )
        self._tokens += len(ids)
        if greedy or row.seed is not None:
            self._digests += answer_digest(packed, sampling.packed, None if greedy else seed)
        else:
            self._digests += lone_digest(row.line)
        self._ids += id_digest(row.id)

    def _echo(self, row: Asked, ids: Ids) -> str:
        return row.prompt if isinstance(row.prompt, str) else self._model.tokenizer.decode(ids, False)

    def _finish(self, source: Source) -> Prepared:
        self._spool.flush()
        doubled = self._refuse_doubled_ids()
        if self._quarantine.rows and self._job.strict:
            self._quarantine.sync()
            raise OperatorError(
                f"{self._quarantine.rows} of {self._rows} rows are bad, so nothing was run (--strict)",
                where=str(self._quarantine.path),
                remedy="each is listed there with its line and remedy; or run without --strict",
            )
        leader, follower = fold(self._digests)
        self._digests = bytearray()
        leader[doubled] = NOBODY
        rows = np.arange(len(leader), dtype=np.int32)
        folded = int(np.count_nonzero((leader != rows) & (leader != NOBODY)))
        size = self._spool.finish(leader, follower)
        self._quarantine.sync()
        return Prepared(self._rows, self._quarantine.rows, folded, self._tokens, source.sha256(), size)

    def _refuse_doubled_ids(self) -> array[int]:
        """Rows whose id an earlier row has; each is left out of the folding and of the run."""
        doubled = array("i")
        for row, first in repeats(self._ids, ID_BYTES):
            line, identifier = self._spool.line[row], self._spool.id_of(row)
            if identifier != self._spool.id_of(first):
                continue
            error = CallerError(
                f"the id {identifier!r} was given to line {self._spool.line[first]} already",
                remedy="give each row an id of its own",
            )
            self._quarantine.add(line, error, b"", identifier)
            self._digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES] = lone_digest(line)
            doubled.append(row)
        self._ids = bytearray()
        return doubled


def _too_long(tokens: str, longest: int) -> CallerError:
    return CallerError(
        f"the prompt has {tokens} tokens; the longest sequence is {longest}",
        remedy="shorten it, or raise --max-model-len as far as the model allows",
    )


def _ids(prompt: TokenIds | None) -> Ids:
    """Raises CallerError for numbers that are no ids at all; those of another model are seen later."""
    try:
        given = (
            prompt if isinstance(prompt, np.ndarray) else np.frombuffer(array("q", prompt or ()), np.int64)
        )
    except (OverflowError, TypeError):
        given = None
    if given is None or (len(given) and not (INT32.min <= given.min() and given.max() <= INT32.max)):
        raise CallerError("a token id is out of range", remedy="give ids of this model's vocabulary")
    return given.astype(np.int32, copy=False)


def _check_tokens(
    row: Asked, ids: Ids, biased: dict[int, float], stops: tuple[int, ...], vocabulary: int
) -> None:
    named = {"logit_bias": biased, "stop_token_ids": stops}
    if not isinstance(row.prompt, str):
        named["prompt"] = (int(ids.min()), int(ids.max()))
    for field, tokens in named.items():
        for token in tokens:
            if not 0 <= token < vocabulary:
                raise CallerError(
                    f"token id {token} in `{field}` is outside the vocabulary of {vocabulary}",
                    remedy="give ids of this model's vocabulary",
                )


class _Named(msgspec.Struct):
    custom_id: str | int | None = None
    id: str | int | None = None


def _id_in(raw: Raw) -> str | None:
    """The id of a bad row, if it can be made out at all."""
    try:
        if isinstance(raw.data, dict):
            named = msgspec.convert(raw.data, _Named)
        else:
            named = msgspec.json.decode(raw.data, type=_Named)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    found = named.id if named.custom_id is None else named.custom_id
    return None if found is None else str(found)
