"""The settings in force, in words: what an engine was built with, and on what machine."""

from __future__ import annotations

import inspect
import os
import platform
import typing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.core.policy import Policy, Range
from shoal.engine import machine

if TYPE_CHECKING:
    from shoal.engine.engine import Engine

Settings = dict[str, list[tuple[str, str, str]]]
"""By heading: (name, value, what it means)."""

PACKAGES = ("shoal", "torch", "numpy", "tokenizers")


def settings_of(engine: Engine) -> Settings:
    """The engine's policies with their parameters, its limits, and the machine."""
    return {"Policies": _policies(engine), "Engine": _engine(engine), "Machine": _machine()}


def _policies(engine: Engine) -> list[tuple[str, str, str]]:
    scheduler = engine.scheduler
    seams: dict[str, Policy | None] = {
        "order": scheduler.order,
        "admission": scheduler.admission,
        "victim": scheduler.victim,
        # A layout that shares nothing keeps nothing, and asks nobody.
        "retention": getattr(engine.memory, "retention", None),
    }
    found = []
    for policy in {id(policy): policy for policy in seams.values() if policy is not None}.values():
        names = [seam for seam, answering in seams.items() if answering is policy]
        found.append((" + ".join(names), repr(policy), summary(policy)))
    return found


def summary(policy: Policy) -> str:
    """The first sentence of what a policy says of itself, and the ranges of its parameters."""
    said = " ".join((inspect.getdoc(type(policy)) or "").partition("\n\n")[0].split())
    ranges = []
    for name, parameter in policy.parameters().items():
        extra = typing.get_args(parameter.annotation)[1:]
        ranges += [f"{name} {item.low:g} to {item.high:g}" for item in extra if isinstance(item, Range)]
    return f"{said} ({', '.join(ranges)})" if ranges else said


def _engine(engine: Engine) -> list[tuple[str, str, str]]:
    scheduler, memory, size = engine.scheduler, engine.memory, engine.executor.page_size
    tokens = memory.ledger.total * size
    return [
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
