"""What the flags of ``shoal run`` become: an engine's configuration, a job, and the job's parameters."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from shoal.core.config import EngineConfig, parse_bytes
from shoal.core.errors import CallerError, OperatorError
from shoal.core.policies import DEFAULTS
from shoal.core.request import Constraint, SamplingParams
from shoal.jobs.examples import read_examples
from shoal.jobs.files import refused
from shoal.jobs.job import Job
from shoal.jobs.sampling import choice_constraint, schema_constraint
from shoal.jobs.tables import form_of
from shoal.jobs.templates import Example, Layout, Question, columns_of, from_jinja, from_pattern

Flags = dict[str, Any]

ENGINE_FLAGS = (
    *("model", "load_format", "dtype", "device", "kernels", "threads", "max_model_len", "max_num_seqs"),
    *("layout", "max_num_batched_tokens", "policy", *DEFAULTS),
)
SAMPLING_FLAGS = (
    *("n", "temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "max_tokens", "min_tokens", "ignore_eos", "logprobs", "prompt_logprobs"),
)


def engine_config(flags: Flags) -> EngineConfig:
    """Raises OperatorError for a value out of range."""
    memory = flags["kv_memory"]
    return EngineConfig(
        **{name: flags[name] for name in ENGINE_FLAGS},
        kv_memory=None if memory is None else parse_bytes(memory),
        prefix_reuse=flags["prefix_reuse"] == "on",
        seed=flags["seed"] % 2**32,
    ).checked()


def read_text(path: Path | None) -> str | None:
    """Raises OperatorError if it cannot be read as UTF-8."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise refused(error, path) from None
    except UnicodeDecodeError:
        raise OperatorError("not UTF-8 text", where=str(path), remedy="save it as UTF-8") from None


def sampling(flags: Flags) -> SamplingParams:
    """Defaults for rows that name none.

    Raises:
        OperatorError: a value is out of range, or there are several constraints.
    """
    values = {name: flags[name] for name in SAMPLING_FLAGS if flags[name] is not None}
    try:
        return SamplingParams(
            **values,
            stop=tuple(flags["stop"]),
            stop_token_ids=tuple(flags["stop_token_id"]),
            constraint=_constraint(flags),
        ).checked()
    except CallerError as error:
        raise OperatorError(error.what, remedy=error.remedy) from None


def _constraint(flags: Flags) -> Constraint | None:
    found = []
    if choices := list(flags["choice"]):
        if len(choices) == 1:
            choices = [text.strip() for text in choices[0].split(",")]
        found.append(choice_constraint(choices))
    if flags["regex"] is not None:
        found.append(Constraint(kind="regex", value=flags["regex"]))
    if flags["json_schema"] is not None:
        found.append(schema_constraint(read_text(flags["json_schema"]) or ""))
    if len(found) > 1:
        raise CallerError("several constraints", remedy="give one of --choice, --regex, --json-schema")
    return found[0] if found else None


def layout(flags: Flags, form: str) -> Layout:
    """Raises OperatorError for flags that contradict each other, and templates or examples that fail."""
    pattern, file = flags["prompt"], flags["template"]
    if pattern is not None and file is not None:
        raise OperatorError("--prompt and --template are both given", remedy="give one of them")
    if pattern is None and file is None and form != "jsonl":
        pattern = "{prompt}"
    question: Question | None = None
    if pattern is not None:
        question = from_pattern(pattern)
    elif file is not None:
        question = from_jinja(read_text(file) or "", str(file))
    examples: tuple[Example, ...] = ()
    if flags["examples"] is not None:
        examples = read_examples(flags["examples"], question or from_pattern("{prompt}"), flags["answer"])
    return Layout(
        question=question,
        chat=flags["chat"] or flags["system"] is not None,
        system=flags["system"],
        examples=examples,
        keep=tuple(flags["keep"]),
        needs=(*columns_of(pattern or ""), *flags["keep"]),
    )


def template_arguments(text: str | None) -> dict[str, Any]:
    """Raises OperatorError unless it is a JSON object."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise OperatorError(
            f"--chat-template-kwargs: {error}", remedy="give a JSON object, such as '{\"a\": true}'"
        ) from None


def job(flags: Flags, config: EngineConfig) -> Job:
    """Raises OperatorError for flags that cannot make a job."""
    form = flags["format"] or form_of(flags["input"])
    defaults = sampling(flags)
    return Job(
        input=flags["input"],
        output=flags["output"],
        form=form,
        defaults=defaults,
        seed=flags["seed"],
        layout=layout(flags, form),
        template_arguments=template_arguments(flags["chat_template_kwargs"]),
        parameters=_parameters(flags, form, defaults),
        limit=flags["limit"],
        line_limit=flags["line_limit"],
        strict=flags["strict"],
        ordered=flags["ordered"],
        window=max(512, 2 * config.max_num_seqs),
    )


def _parameters(flags: Flags, form: str, defaults: SamplingParams) -> dict[str, Any]:
    """Everything that changes answers or which rows are answered, by the name of its flag."""
    values = {name.replace("_", "-"): value for name, value in msgspec.to_builtins(defaults).items()}
    files = ("template", "examples", "chat_template")
    texts = ("prompt", "system", "answer", "chat", "chat_template_kwargs", "limit", "line_limit", "seed")
    engine = ("max_model_len", "load_format", "device")
    values |= {name.replace("_", "-"): flags[name] for name in (*texts, *engine)}
    values |= {name.replace("_", "-"): _digest(flags[name]) for name in files}
    return {**values, "keep": list(flags["keep"]), "format": form}


def _digest(path: Path | None) -> str | None:
    """A short mark of a file's contents."""
    if path is None:
        return None
    return hashlib.blake2b((read_text(path) or "").encode(), digest_size=8).hexdigest()
