"""The settings in force, in words: what an engine was built with, and on what machine."""

from __future__ import annotations

import inspect
import os
import platform
import typing
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.core.policy import Policy, Range, Retention
from shoal.engine import machine

if TYPE_CHECKING:
    from shoal.engine.engine import Engine

Settings = dict[str, list[tuple[str, str, str]]]
"""By heading: (name, value, what it means)."""

PACKAGES = ("shoal", "torch", "numpy", "tokenizers")


def settings_of(engine: Engine, choices: Sequence[str] = ()) -> Settings:
    """The engine's policies with their parameters, its limits, and the machine.

    Args:
        choices: what was chosen when the engine was prepared, as short phrases.
    """
    chosen = [("chosen at start", " · ".join(choices), "")] if choices else []
    return {"Policies": _policies(engine), "Engine": _engine(engine) + chosen, "Machine": _machine()}


def _policies(engine: Engine) -> list[tuple[str, str, str]]:
    scheduler = engine.scheduler
    asked: list[tuple[str, Policy]] = [
        ("order", scheduler.order),
        ("admission", scheduler.admission),
        ("victim", scheduler.victim),
        *(("memory", policy) for policy in engine.memory.policies),
    ]
    found = []
    for policy in {id(policy): policy for _, policy in asked}.values():
        seams = [_seam(seam, policy) for seam, answering in asked if answering is policy]
        found.append((" + ".join(seams), written(policy), summary(policy)))
    return found


def _seam(seam: str, policy: Policy) -> str:
    return "retention" if seam == "memory" and isinstance(policy, Retention) else seam


def written(policy: Policy) -> str:
    """The policy with its parameters, and what it made of them."""
    parameters = policy.parameters()
    made = [
        f"{name}={value!r}"
        for name, value in vars(policy).items()
        if name not in parameters and not name.startswith("_") and isinstance(value, int | float | str)
    ]
    return f"{policy!r}, here {', '.join(made)}" if made else repr(policy)


def summary(policy: Policy) -> str:
    """What a policy says of itself in short, and the ranges of its parameters."""
    said = " ".join((inspect.getdoc(type(policy)) or "").partition("\n\n")[0].split())
    ranges = []
    for name, parameter in policy.parameters().items():
        extra = typing.get_args(parameter.annotation)[1:]
        ranges += [f"{name} {item.low:,g} to {item.high:,.10g}" for item in extra if isinstance(item, Range)]
    return f"{said} ({', '.join(ranges)})" if ranges else said


def _engine(engine: Engine) -> list[tuple[str, str, str]]:
    scheduler, memory, size = engine.scheduler, engine.memory, engine.executor.page_size
    tokens = memory.ledger.total * size
    model = engine.answers.model
    return [
        *([] if model is None else [("model", model.name, "")]),
        ("sequences side by side", f"{scheduler.max_running:,}", "at most"),
        ("longest sequence", f"{scheduler.max_length:,} tokens", "prompt and answer"),
        ("KV pool", f"{tokens:,} tokens", f"{memory.ledger.total:,} pages of {size}"),
        ("vocabulary", f"{engine.vocabulary:,} tokens", ""),
    ]


def _machine() -> list[tuple[str, str, str]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [
        ("processor", _processor(), f"{cores} cores for this process, {machine.isa()}"),
        ("system", f"{platform.system()} {platform.release()}", platform.machine()),
        ("Python", platform.python_version(), platform.python_implementation()),
    ]
    for package in PACKAGES:
        try:
            found.append((package, version(package), ""))
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    line = next((row for row in text.splitlines() if row.startswith("model name")), "")
    return line.partition(":")[2].strip() or platform.processor() or "unknown"
