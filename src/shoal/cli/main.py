"""``shoal``: the command line, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import click

from shoal import __version__
from shoal.core.errors import CallerError, OperatorError
from shoal.engine.machine import uncollected
from shoal.jobs.ending import INTERRUPTED, OUR_FAULT, REFUSED, Interrupted


class Commands(click.Group):
    """One module a verb, imported when the verb is used."""

    VERBS = {
        "run": ("shoal.cli.run:run", "Answer a file of prompts."),
        "plan": ("shoal.cli.plan:plan", "Say what a run would cost, without running it."),
        "calibrate": ("shoal.cli.calibrate:calibrate", "Measure what steps cost on this machine."),
        "bench": ("shoal.cli.bench:bench", "Say how fast jobs run here, and where the time goes."),
        "policies": ("shoal.cli.policies:policies", "List systems and policies."),
        "reproduce": ("shoal.cli.reproduce:reproduce", "Run the experiment that justifies a system."),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.VERBS:
            return None
        from importlib import import_module

        module, _, name = self.VERBS[cmd_name][0].partition(":")
        with uncollected():
            command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.VERBS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="shoal %(version)s")
def commands() -> None:
    """A batch-first inference engine for language models."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code; a refusal is one line, never a traceback."""
    sys.exit(code_of(arguments))


def code_of(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    try:
        result: Any = commands.main(args=arguments, prog_name="shoal", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit:
        return exit.exit_code
    except click.ClickException as error:
        error.show()
        return REFUSED
    except (CallerError, OperatorError) as error:
        _say(f"shoal: {error}")
        return REFUSED
    except (Interrupted, click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; what is left of it must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return OUR_FAULT
    except Exception as error:
        _say(f"shoal: a fault of shoal: {type(error).__name__}: {_one_line(error)} ({_keep(error)})")
        return OUR_FAULT


def _say(line: str) -> None:
    click.echo(" ".join(line.split("\n")), err=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _keep(error: Exception) -> str:
    """Write the traceback to a file; returns where it stands."""
    path = Path(getattr(error, "crash_file", None) or f"shoal-crash-{os.getpid()}.txt")
    text = "".join(traceback.format_exception(error))
    stamp = time.strftime("%Y-%m-%d %H:%M:%S %z")
    try:
        path.write_text(f"shoal {__version__}, {stamp}\n{sys.argv}\n\n{text}", encoding="utf-8")
    except OSError:
        click.echo(text, err=True)
        return "the crash file could not be written, so the traceback stands above"
    return f"traceback in {path}; please report it"


if __name__ == "__main__":
    main()
