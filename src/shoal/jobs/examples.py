"""Worked examples for few-shot prompts, out of a small table of their own."""

from __future__ import annotations

from pathlib import Path

from shoal.core.errors import CallerError, OperatorError
from shoal.jobs.rows import decode_object
from shoal.jobs.tables import form_of, open_source
from shoal.jobs.templates import Example, Question, as_text


def read_examples(path: Path, question: Question, answer: str) -> tuple[Example, ...]:
    """Every row of ``path`` through the job's own template, with column ``answer`` as its answer.

    Raises:
        OperatorError: a row cannot be read or lacks a column.
    """
    source = open_source(path, form_of(path))
    examples = []
    try:
        for raw in source.rows():
            try:
                if raw.error is not None:
                    raise raw.error
                columns = raw.data if isinstance(raw.data, dict) else decode_object(raw.data)
                asked = question(columns)
                if not isinstance(asked, str):
                    raise CallerError("a worked example is token ids", remedy="give it as text")
                examples.append(Example(asked, as_text(columns, answer)))
            except CallerError as error:
                raise OperatorError(error.what, where=f"{path}:{raw.line}", remedy=error.remedy) from None
    finally:
        source.close()
    return tuple(examples)
