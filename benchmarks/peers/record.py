"""What the contest has found so far, on disk after every pair, so that a cut run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import ROOT

FAR = 1.5
"""Peers that take so many times as long as the fastest get no more pairs."""


@dataclass
class Pair:
    """Seconds of shoal and of the peer, one after the other.

    Attributes:
        disturbed: a stranger computed beside them, however often the pair was run again.
        retries: how often it was.
    """

    ours: float
    theirs: float
    disturbed: bool = False
    retries: int = 0

    @property
    def ratio(self) -> float:
        """How many times as fast shoal was."""
        return self.theirs / self.ours


@dataclass
class Cell:
    """A model, a job and a peer.

    Attributes:
        key: what the figures depend on: versions, digest of shoal's sources, settings, job, processor.
        tokens: produced in one run, by each.
        wanted: pairs that make it whole.
        failed: why the peer has no figures, one line; empty if it has.
        void: why the figures do not count, one line; empty if they do.
        ours, theirs: versions, settings and how caches were made cold.
    """

    model: str
    job: str
    peer: str
    key: dict[str, Any]
    tokens: int
    wanted: int
    pairs: list[Pair] = field(default_factory=list)
    failed: str = ""
    void: str = ""
    ours: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return bool(self.void) or len(self.pairs) >= self.wanted

    @property
    def rates(self) -> tuple[float, float]:
        """Median tokens a second of shoal and of the peer."""
        return (
            self.tokens / statistics.median(pair.ours for pair in self.pairs),
            self.tokens / statistics.median(pair.theirs for pair in self.pairs),
        )

    @property
    def ratios(self) -> tuple[float, float, float]:
        """Median, least and largest of the pairs' ratios."""
        found = [pair.ratio for pair in self.pairs]
        return statistics.median(found), min(found), max(found)


@dataclass
class Record:
    """Cells by name, and the limits measured beside them (seconds, by model and job)."""

    path: Path
    cells: dict[str, Cell] = field(default_factory=dict)
    limits: dict[str, dict[str, Any]] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Record:
        """What stands in ``path``; an empty record if it does not exist."""
        if not path.is_file():
            return cls(path)
        found = json.loads(path.read_text())
        cells = {
            name: Cell(**{**cell, "pairs": [Pair(**pair) for pair in cell["pairs"]]})
            for name, cell in found["cells"].items()
        }
        return cls(path, cells, found["limits"], found["machine"])

    def cell(self, wanted: Cell) -> Cell:
        """The cell to go on with: the one on record if it was measured with the same key, else this one."""
        name = f"{wanted.model}/{wanted.job}/{wanted.peer}"
        found = self.cells.get(name)
        if found is None or found.key != wanted.key:
            found = self.cells[name] = wanted
        found.wanted = wanted.wanted
        return found

    def behind(self, cell: Cell) -> bool:
        """Whether the cell's peer takes more than ``FAR`` times as long as the fastest in this job, by
        medians: more pairs would not make it the best one."""
        rivals = [
            other.rates[1]
            for other in self.cells.values()
            if (other.model, other.job) == (cell.model, cell.job) and other.pairs and not other.void
        ]
        return bool(cell.pairs) and max(rivals, default=0.0) > FAR * cell.rates[1]

    def save(self) -> None:
        """Whole or not at all."""
        content = {
            "machine": self.machine,
            "limits": self.limits,
            "cells": {name: asdict(cell) for name, cell in self.cells.items()},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part")
        with part.open("w") as file:
            file.write(json.dumps(content, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)


ROOMS = ("core", "engine", "kernels", "memory", "models", "reuse", "schedule")
"""What takes part in a contestant's run."""
SOURCES = (*(ROOT / "src" / "shoal" / room for room in ROOMS), ROOT / "hatch_build.py")


def sources_digest(folders: Iterable[Path] = SOURCES) -> str:
    """Twelve digits that change with any source file of shoal that could change a figure."""
    digest = hashlib.sha256()
    for root in folders:
        files = [root] if root.is_file() else sorted(root.rglob("*"))
        for file in files:
            if file.suffix in (".py", ".cpp", ".h"):
                digest.update(f"{file.relative_to(root.parent)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
