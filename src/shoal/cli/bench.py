"""``shoal bench``: how fast a job runs here, where a step's time goes, and how far that is from the limit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from shoal.cli.flags import engine_flags, input_flags, sampling_flags
from shoal.cli.options import Flags, engine_config, job, read_text
from shoal.core.errors import OperatorError
from shoal.jobs.ending import ANSWERED, SOME_FAILED

if TYPE_CHECKING:
    from shoal.bench.limit import Rates
    from shoal.bench.measure import Measured
    from shoal.core.config import EngineConfig
    from shoal.engine.build import Prepared

LLAMA, ROOFLINE = "llama135m", "roofline"
HELP = """Run a job with a clock, and say how fast it was, where a step's time went, and what share of the
machine's limit that is.

WHAT is 'shared', 'mixed', 'decode', 'single' or 'forest' (token ids drawn at random, answers of fixed
length), several of them with commas, 'all' (the default), a file of prompts as 'shoal run' takes it, or
'roofline': how fast this machine multiplies and reads, by number of rows. The limit is measured in the same
run with torch's own products, never with shoal's."""


@click.command(help=HELP)
@click.argument("what", default="all")
@click.option("--quick", is_flag=True, help="Small versions of the five jobs.")
@click.option("--repeat", type=click.IntRange(min=1), default=1, show_default=True, help="Cold runs a job.")
@click.option("--limits/--no-limits", default=True, help="Measure the limit too.  [default: limits]")
@click.option(
    "--at-least",
    type=click.FloatRange(min=0.0),
    help="Fail unless every job reaches this share of its limit.",
)
@click.option("--json", "machine", is_flag=True, help="One line of JSON on standard output, nothing else.")
@input_flags
@sampling_flags
@engine_flags(model=LLAMA)
def bench(
    what: str, quick: bool, repeat: int, limits: bool, at_least: float | None, machine: bool, **flags: Any
) -> int:
    if at_least is not None and not limits:
        raise OperatorError("--at-least needs the limit", remedy="leave --no-limits out")
    with _model(flags) as named:
        config = engine_config(named)
        if what == ROOFLINE:
            return _roofline(config, machine)
        if Path(what).is_file():
            found = [_rows(what, config, named, limits, machine)]
        else:
            found = _five(what, config, named, quick, repeat, limits, machine)
    short = [one.name for one in found if one.share is not None and one.share < (at_least or 0.0)]
    if short:
        click.echo(f"less than {at_least:.0%} of the limit: {', '.join(short)}", err=True)
    return SOME_FAILED if short else ANSWERED


@contextmanager
def _model(flags: Flags) -> Iterator[Flags]:
    """``llama135m`` is made up where no folder has that name: a config, and random weights for it."""
    if flags["model"] != LLAMA or Path(LLAMA).exists():
        yield flags
        return
    from shoal.bench.jobs import LLAMA_135M

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, LLAMA)
        path.mkdir()
        (path / "config.json").write_bytes(msgspec.json.encode(LLAMA_135M))
        yield {**flags, "model": str(path), "load_format": "dummy"}


def _five(
    what: str, config: EngineConfig, flags: Flags, quick: bool, repeat: int, limits: bool, machine: bool
) -> list[Measured]:
    """The jobs that ``what`` names."""
    import numpy as np

    from shoal.bench.jobs import JOBS
    from shoal.bench.measure import limited, measure, prepared_for
    from shoal.cli import figures
    from shoal.engine.build import prepare

    names = list(JOBS) if what == "all" else what.split(",")
    if unknown := set(names) - set(JOBS):
        raise OperatorError(
            f"no such job, and no such file: {', '.join(sorted(unknown))}",
            remedy=f"valid: {', '.join(JOBS)}, all, {ROOFLINE}, or a file of prompts",
        )
    vocabulary = prepare(config).model.vocabulary
    found: list[Measured] = []
    rates: Rates | None = None
    for name in names:
        shape = JOBS[name](np.random.default_rng(flags["seed"]), vocabulary, quick)
        prepared = prepared_for(shape, config)
        if not found and not machine:
            click.echo(_described(prepared))
        measured = measure(shape, prepared, repeat)
        if limits and prepared.architecture is not None:
            rates = rates or _rates(prepared)
            limited(measured, shape, prepared, rates)
        found.append(measured)
        if not machine:
            figures.show(measured)
    if machine:
        figures.say(found, prepared)
    elif len(found) > 1:
        figures.table(found)
    return found


def _rows(what: str, config: EngineConfig, flags: Flags, limits: bool, machine: bool) -> Measured:
    """A file of prompts."""
    from shoal.bench.measure import limited
    from shoal.bench.own import measure_rows
    from shoal.cli import figures
    from shoal.cli.stop import Stop
    from shoal.engine.build import prepare, start
    from shoal.jobs.plan import Planner

    stop = Stop()
    stop.install()
    task = job({**flags, "input": Path(what), "output": Path(what + ".bench"), **_PLAIN}, config)
    prepared = prepare(config, read_text(flags["chat_template"]))
    if not machine:
        click.echo(_described(prepared))
    measured, shape = measure_rows(task, Planner(prepared, flags["expected_tokens"]), start, stop)
    if limits and prepared.architecture is not None:
        limited(measured, shape, prepared, _rates(prepared))
    if machine:
        figures.say([measured], prepared)
    else:
        figures.show(measured)
    return measured


def _described(prepared: Prepared) -> str:
    """The engine in one line, the model by the last part of its name."""
    model = prepared.config.model
    return prepared.description.replace(model, Path(model).name, 1)


_PLAIN = {"strict": False, "ordered": False}


def _rates(prepared: Prepared) -> Rates:
    from shoal.bench.tensors.rates import MeasuredRates

    if prepared.config.device != "cpu":
        raise OperatorError("limits are measured on CPUs only", remedy="add --no-limits")
    return MeasuredRates(prepared.dtype, prepared.threads)


def _roofline(config: EngineConfig, machine: bool) -> int:
    from shoal.bench.tensors.roofline import measure_roofline
    from shoal.cli import figures
    from shoal.engine.build import prepare

    prepared = prepare(config)
    if prepared.architecture is None:
        raise OperatorError("the null model multiplies nothing", remedy="name another with --model")
    figures.roofline(measure_roofline(prepared.architecture, prepared.threads), machine)
    return ANSWERED
