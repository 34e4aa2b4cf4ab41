"""The flags that several verbs share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from shoal.core.policies import DEFAULTS
from shoal.jobs.sampling import DEFAULT_MAX_TOKENS
from shoal.jobs.sources import LINE_LIMIT
from shoal.jobs.tables import FORMS

FILE = click.Path(path_type=Path)


def engine_flags(command: Any = None, *, model: str | None = None) -> Any:
    """What ``shoal.core.config.EngineConfig`` is made from; ``model`` is the one where none is named."""
    if command is None:
        return partial(engine_flags, model=model)
    flags = [
        click.option(
            "--model",
            # A default that is stated, even None, would do for what is required.
            **({"required": True} if model is None else {"default": model, "show_default": True}),
            help="Hugging Face id or folder, a GGUF file, 'demo', or 'null': no model at all, tokens are a "
            "function of the prompt's bytes (for tests and dry runs).",
        ),
        click.option(
            "--load-format", type=click.Choice(["auto", "safetensors", "gguf", "dummy"]), default="auto"
        ),
        click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto"),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N."),
        click.option(
            "--kernels",
            type=click.Choice(["auto", "compiled", "plain"]),
            default="auto",
            show_default=True,
            help="What computes the model: shoal's own compiled kernels (CPU), or torch's operators.",
        ),
        click.option("--threads", type=int, help="Compute threads.  [default: what this process may use]"),
        click.option("--kv-memory", help="Size of the KV cache, such as 2GiB.  [default: what is left]"),
        click.option("--max-model-len", type=int, help="Longest sequence in tokens."),
        click.option(
            "--max-num-seqs", type=int, default=256, show_default=True, help="Most sequences side by side."
        ),
        click.option(
            "--max-num-batched-tokens",
            type=int,
            help="Most tokens a step.  [default: what 'shoal calibrate' found best here, else 512]",
        ),
        click.option("--policy", help="A published system, for all it answers; see 'shoal policies'."),
        *(click.option(f"--{seam}", help=f"[default: {name}]") for seam, name in DEFAULTS.items()),
        click.option(
            "--layout",
            type=click.Choice(["auto", "paged", "contiguous", "slots"]),
            default="auto",
            show_default=True,
            help="K/V in pages, in pages mapped side by side for each sequence, or in one place a sequence; "
            "auto: paged, or what the system says.",
        ),
        click.option(
            "--prefix-reuse",
            type=click.Choice(["on", "off"]),
            default="on",
            show_default=True,
            help="Whether rows take over what others computed of an equal beginning.",
        ),
    ]
    return _apply(command, flags)


def sampling_flags(command: Any) -> Any:
    """Defaults for rows that name none."""
    flags = [
        click.option("--temperature", type=float, default=1.0, show_default=True, help="0 is greedy."),
        click.option("--max-tokens", type=int, default=DEFAULT_MAX_TOKENS, show_default=True),
        click.option("--min-tokens", type=int),
        click.option("--top-p", type=float),
        click.option("--top-k", type=int),
        click.option("--min-p", type=float),
        click.option("--presence-penalty", type=float),
        click.option("--frequency-penalty", type=float),
        click.option("--repetition-penalty", type=float),
        click.option("--stop", multiple=True, help="Text that ends an answer; may be given again."),
        click.option("--stop-token-id", type=int, multiple=True),
        click.option("--ignore-eos", is_flag=True, default=None),
        click.option("--n", type=int, help="Answers a row."),
        click.option("--logprobs", type=int, help="Log-probabilities, with so many alternatives."),
        click.option("--prompt-logprobs", type=int),
        click.option(
            "--choice",
            multiple=True,
            help="Answers are one of these: once with commas, 'yes,no', or once for each, taken as it is.",
        ),
        click.option("--regex", help="Answers match this pattern."),
        click.option("--json-schema", type=FILE, help="Answers are JSON of the schema in this file."),
        click.option(
            "--seed",
            type=int,
            default=0,
            show_default=True,
            help="Of the job: a row that names no seed gets one from this and its id.",
        ),
    ]
    return _apply(command, flags)


def input_flags(command: Any) -> Any:
    """How rows become prompts."""
    flags = [
        click.option("--format", type=click.Choice(FORMS), help="Form of IN.  [default: by its ending]"),
        click.option("--prompt", help="Prompt over a row's columns: 'Label: {text}'."),
        click.option("--template", type=FILE, help="The same as a Jinja file; 'row' is all columns."),
        click.option("--chat", is_flag=True, help="Prompts become user messages of a conversation."),
        click.option("--system", help="System message of rows that bring none; implies --chat."),
        click.option("--examples", type=FILE, help="Worked examples, put first in every prompt."),
        click.option("--answer", default="answer", show_default=True, help="The examples' answer column."),
        click.option("--chat-template", type=FILE, help="Instead of the model's own."),
        click.option("--chat-template-kwargs", help="JSON object of further names for the chat template."),
        click.option("--keep", multiple=True, metavar="COL", help="Carry a column to the results."),
        click.option(
            "--expected-tokens",
            type=click.IntRange(min=1),
            help="Tokens that you expect of an answer, for the plan.  [default: max-tokens, or the choices']",
        ),
        click.option("--limit", type=click.IntRange(min=1), help="Only the first N rows."),
        click.option("--line-limit", type=click.IntRange(min=1), default=LINE_LIMIT, show_default=True),
    ]
    return _apply(command, flags)


def _apply(command: Any, flags: list[Any]) -> Any:
    for flag in reversed(flags):
        command = flag(command)
    return command
