"""``shoal run`` and ``shoal plan``, from their flags to what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from shoal.cli.display import Quiet, watcher
from shoal.cli.options import Flags, engine_config, job, read_text
from shoal.cli.stop import Stop
from shoal.core.errors import CallerError
from shoal.engine.machine import lean_torch, uncollected
from shoal.jobs.bodies import Message
from shoal.jobs.ending import Interrupted
from shoal.jobs.job import Job
from shoal.jobs.opening import open_rows

if TYPE_CHECKING:
    from shoal.engine.build import Prepared
    from shoal.engine.engine import Engine
    from shoal.engine.model import TextModel
    from shoal.jobs.outlook import Outlook
    from shoal.jobs.plan import Planner

SUGGESTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def _check_defaults(task: Job, model: TextModel) -> None:
    """What the flags ask of every row is refused once, not row by row.

    Raises:
        CallerError: the model has no chat template, a constraint cannot be compiled, or an id is none of
            the model's.
    """
    for token in task.defaults.stop_token_ids:
        if token >= model.vocabulary:
            raise CallerError(
                f"--stop-token-id {token} is outside the vocabulary of {model.vocabulary}",
                remedy="give an id of this model's vocabulary",
            )
    if task.defaults.constraint is not None:
        model.check_constraint(task.defaults.constraint)
    if task.layout.chat:
        model.render(task.layout.conversation([Message("user", "?")]), task.template_arguments)


def _suggestions(model: TextModel) -> str:
    """What the model's authors suggest for sampling; shown, never applied unasked."""
    files = getattr(model, "files", None)
    stored = {} if files is None else files.generation_config
    named = [f"{name} {stored[name]}" for name in SUGGESTED if stored.get(name) is not None]
    return f"generation_config.json suggests {', '.join(named)}; not applied" if named else ""


def run_with(flags: Flags) -> int:
    """Raises what ``shoal.jobs.runner.run_job`` raises; ``cli.main`` turns that into codes."""
    with _started(flags) as (task, planner, load, display, stop):
        from shoal.jobs.runner import run_job

        try:
            summary = run_job(task, planner.prepared, load, display, stop, planner=planner)
        except Interrupted:
            display.interrupted(task)
            raise
        except Exception as error:
            error.crash_file = task.files.crash  # type: ignore[attr-defined]
            raise
        display.finished(task, summary)
    return summary.exit_code


def plan_with(flags: Flags) -> Outlook | None:
    """Raises what ``shoal.jobs.outlook.plan_job`` raises."""
    with _started(flags) as (task, planner, load, display, stop):
        from shoal.jobs.outlook import plan_job

        try:
            return plan_job(task, planner, load, display, stop)
        except Interrupted:
            display.say("interrupted")
            raise


class Started(NamedTuple):
    """What both verbs work with. ``load`` reads the weights."""

    task: Job
    planner: Planner
    load: Callable[[Prepared], Engine]
    display: Quiet
    stop: Stop


@contextmanager
def _started(flags: Flags) -> Iterator[Started]:
    stop = Stop()
    stop.install()
    config = engine_config(flags)
    task = job(flags, config)
    # Whatever is wrong with the files is said before a model is looked for, or even downloaded.
    open_rows(task).close()
    with uncollected():
        from shoal.engine.build import prepare, start
        from shoal.jobs.plan import Planner

        prepared = prepare(config, read_text(flags["chat_template"]))
    _check_defaults(task, prepared.model)
    with watcher(flags["quiet"]) as display:

        def loading(done: int, size: int) -> None:
            display.loading(done, size)
            if stop():
                raise Interrupted

        def load(prepared: Prepared) -> Engine:
            display.say(prepared.description)
            if suggestions := _suggestions(prepared.model):
                display.say(suggestions)
            with lean_torch(), uncollected():
                return start(prepared, loading)

        yield Started(task, Planner(prepared, flags["expected_tokens"]), load, display, stop)
