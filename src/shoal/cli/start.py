"""One ``shoal run`` from its flags to its exit code."""

from __future__ import annotations

from shoal.cli.display import watcher
from shoal.cli.options import Flags, engine_config, job, read_text
from shoal.cli.stop import Stop
from shoal.engine.build import prepare, start
from shoal.engine.engine import Engine
from shoal.jobs.job import Interrupted
from shoal.jobs.runner import open_rows, run_job


def run_with(flags: Flags) -> int:
    """Raises what ``shoal.jobs.runner.run_job`` raises; ``cli.main`` turns that into codes."""
    stop = Stop()
    stop.install()
    config = engine_config(flags)
    task = job(flags, config)
    # Whatever is wrong with the files is said before a model is looked for, or even downloaded.
    open_rows(task).close()
    prepared = prepare(config, read_text(flags["chat_template"]))
    with watcher(flags["quiet"]) as display:

        def loading(done: int, size: int) -> None:
            display.loading(done, size)
            if stop():
                raise Interrupted

        def loaded() -> Engine:
            display.say(prepared.description)
            engine = start(prepared, loading)
            display.engine = engine
            return engine

        try:
            summary = run_job(task, prepared.model, loaded, display, stop)
        except Interrupted:
            display.interrupted(task)
            raise
        except Exception as error:
            error.crash_file = task.files.crash  # type: ignore[attr-defined]
            raise
        display.finished(task, summary)
    return summary.exit_code
