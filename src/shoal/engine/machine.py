"""What this machine gives us: threads, memory, instruction set. Cold: reads the operating system's files."""

from __future__ import annotations

import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

RESERVE = 2 * 2**30
"""Bytes left alone beside weights and KV: interpreter, tokenizer, activations, one slice of logits."""
DEVICE_RESERVE = 2**30
"""The same on an accelerator."""

_CGROUP = Path("/sys/fs/cgroup")
_ISA = (
    ("amx_bf16", "AMX"),
    ("avx512_bf16", "AVX-512 BF16"),
    ("avx512f", "AVX-512"),
    ("avx2", "AVX2"),
    ("asimd", "NEON"),
)


def threads(asked: int | None = None) -> tuple[int, str]:
    """(compute threads, why): as asked, else the affinity mask capped by the cgroup's CPU quota."""
    if asked is not None:
        return asked, "as asked"
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _cpu_quota()
    if quota is not None and quota < allowed:
        return max(1, int(quota)), "cgroup quota"
    return allowed, "affinity mask"


def calm_threads() -> None:
    """Make OpenMP's threads sleep between two products instead of spinning; call before torch is imported.

    Spinning threads burn the core that another process, or this one's tokenizer, wants, and turn a busy
    machine into one several times slower. Whoever has set either variable keeps what they set.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def uncollected() -> Iterator[None]:
    """Without looking for garbage: imports and vocabularies make many objects and none of it. What is there
    in the end is never looked at again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.freeze()
            gc.enable()


@contextmanager
def lean_torch() -> Iterator[None]:
    """Import torch here without its shape functions in Python, a quarter of its import: they serve tensors
    without data, and torch.compile. For processes that are shoal's own; who imports them later gets them."""
    name = "torch._meta_registrations"
    if "torch" in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]
        vars(sys.modules.get("torch", ModuleType("torch"))).pop("_meta_registrations", None)


def compiled() -> bool:
    """Whether the package was built with its compiled kernels."""
    return any((Path(__file__).parents[1] / "kernels").glob("_native*.so"))


def memory() -> int:
    """Bytes that can still be taken: what the machine says is available, capped by the cgroup's limit."""
    available = _meminfo("MemAvailable")
    limit, used = _read_number("memory.max"), _read_number("memory.current")
    if limit is not None and used is not None:
        inactive = _memory_stat("inactive_file")
        available = min(available, max(0, limit - used + inactive))
    return available


def isa() -> str:
    """The widest instruction set that matters for matrix products, for people."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "ISA unknown"
    line = next((row for row in text.splitlines() if row.startswith(("flags", "Features"))), "")
    flags = set(line.partition(":")[2].split())
    return next((name for flag, name in _ISA if flag in flags), "baseline ISA")


def multiplies_bf16() -> bool:
    """Whether the processor multiplies bfloat16 numbers; others turn them into float32 first."""
    return isa() in ("AMX", "AVX-512 BF16")


def processor() -> str:
    """What the processor calls itself."""
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "CPU part"):
            return value.strip()
    return platform.processor() or platform.machine()


def _cpu_quota() -> float | None:
    """CPUs' worth of time that the cgroup allows, None without a limit (cgroup v2 ``cpu.max``, v1 cfs)."""
    text = _read(_CGROUP / "cpu.max")
    if text is not None:
        quota, period = text.split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    old_quota, old_period = (
        _read(_CGROUP / "cpu" / "cpu.cfs_quota_us"),
        _read(_CGROUP / "cpu" / "cpu.cfs_period_us"),
    )
    if old_quota is None or old_period is None or int(old_quota) <= 0:
        return None
    return int(old_quota) / int(old_period)


def _read_number(name: str) -> int | None:
    """A cgroup memory figure (v2, else its v1 name), None where unlimited or absent."""
    old = {"memory.max": "memory.limit_in_bytes", "memory.current": "memory.usage_in_bytes"}
    text = _read(_CGROUP / name) or _read(_CGROUP / "memory" / old[name])
    if text is None or text == "max" or int(text) >= 2**60:
        return None
    return int(text)


def _memory_stat(key: str) -> int:
    text = _read(_CGROUP / "memory.stat") or ""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _meminfo(key: str) -> int:
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        name, _, rest = line.partition(":")
        if name == key:
            return int(rest.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
