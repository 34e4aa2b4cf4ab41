"""Calibrations on disk: what steps cost here, kept for each model, type, device, kernels, threads, layout and
version.

A file is named by a digest of everything that the measurement depends on, so another model, another machine
or another version finds none and measures anew. Nothing but the owner's cache folder is written.
"""

from __future__ import annotations

import hashlib
import os
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from shoal import __version__
from shoal.core.cost import CostTable, StepShape
from shoal.core.errors import OperatorError
from shoal.engine import machine
from shoal.models.architecture import Architecture
from shoal.models.demo import cache_folder

FORMAT = 1
"""Of the file; a reader takes no other."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a measurement holds for; if one changes, it is made anew.

    Attributes:
        architecture: digest of the model as a list of stages. Its weights do not matter.
        processor: as it calls itself, with its widest instruction set.
    """

    architecture: str
    dtype: str
    device: str
    kernels: str
    threads: int
    layout: str
    page_size: int
    processor: str
    shoal: str
    torch: str

    @property
    def key(self) -> str:
        return hashlib.blake2b(msgspec.json.encode(self), digest_size=12).hexdigest()


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """One file.

    Attributes:
        format: version of the file's form.
        model: as the operator named it, for people.
        measured: when, ISO 8601, UTC.
        seconds: how long measuring took.
        table: what was fitted.
        steps: what it was fitted to: shape and seconds of each step.
    """

    format: int
    model: str
    identity: Identity
    measured: str
    seconds: float
    table: CostTable
    steps: list[tuple[StepShape, float]]


def identity_of(
    architecture: Architecture,
    *,
    dtype: str,
    device: str,
    kernels: str,
    threads: int,
    layout: str,
    page_size: int,
) -> Identity:
    """What a measurement for this engine on this machine holds for."""
    return Identity(
        architecture=hashlib.blake2b(repr(architecture).encode(), digest_size=12).hexdigest(),
        dtype=dtype,
        device=device,
        kernels=kernels,
        threads=threads,
        layout=layout,
        page_size=page_size,
        processor=f"{machine.processor()}, {machine.isa()}",
        shoal=__version__,
        torch=_version("torch"),
    )


def path_of(identity: Identity) -> Path:
    """Where the calibration stands, or would."""
    return cache_folder() / "calibration" / f"{identity.key}.json"


def load(identity: Identity) -> tuple[Stored | None, str | None]:
    """(the calibration or None, what is wrong with the file if there is one that cannot be used)."""
    path = path_of(identity)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Stored)
    except FileNotFoundError:
        return None, None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        return None, f"the calibration in {path} cannot be read ({error}); it is measured anew"
    if found.format != FORMAT or found.identity != identity or not _sound(found.table):
        return None, f"the calibration in {path} is not one of this engine; it is measured anew"
    return found, None


def save(
    identity: Identity,
    model: str,
    table: CostTable,
    steps: list[tuple[StepShape, float]],
    seconds: float,
) -> Path:
    """Write it whole or not at all; returns where.

    Raises:
        OperatorError: the cache folder cannot be written.
    """
    stored = Stored(
        format=FORMAT,
        model=model,
        identity=identity,
        measured=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seconds=seconds,
        table=table,
        steps=steps,
    )
    path = path_of(identity)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.encode(stored))
        part.replace(path)
    except OSError as error:
        raise OperatorError(
            f"the calibration cannot be kept: {error.strerror}",
            where=str(path),
            remedy="make the folder writable, or name another with SHOAL_CACHE",
        ) from None
    return path


def _sound(table: CostTable) -> bool:
    """Whether the columns belong together, ascend, and hold seconds."""
    for counts, seconds in (
        (table.row_counts, table.row_seconds),
        (table.emit_counts, table.emit_seconds),
    ):
        if len(counts) != len(seconds) or list(counts) != sorted({*counts}):
            return False
        if list(seconds) != sorted(seconds) or any(not 0.0 <= value < 1e9 for value in seconds):
            return False
    products = (table.run, table.gathered, table.pair, table.drawn, table.masked)
    return bool(table.row_counts) and all(0.0 <= value < 1e9 for value in products)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
