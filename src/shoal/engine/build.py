"""From a configuration to an engine, in two steps.

``prepare`` reads headers, chooses sizes and says why; it imports no torch, so that a refused start costs
nothing. ``start`` loads the weights and puts the parts together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import msgspec
import numpy as np

from shoal.core.config import NULL_MODEL, EngineConfig
from shoal.core.cost import Cost
from shoal.core.errors import OperatorError
from shoal.core.executor import Executor
from shoal.core.policies import DEFAULTS, make, resolve
from shoal.core.policy import SEAMS, Admission, Load, Order, Policy, Retention, Reuse, Victim
from shoal.core.table import SequenceTable
from shoal.engine import contiguous, machine
from shoal.engine.calibration import Identity, identity_of, load
from shoal.engine.engine import Engine
from shoal.engine.model import StoredModel, TextModel
from shoal.engine.null_executor import NullExecutor
from shoal.engine.null_model import RESERVED, NullModel
from shoal.memory.contiguous import ContiguousMemory
from shoal.memory.kv import KVMemory
from shoal.memory.layout import Layout
from shoal.memory.slots import SlotMemory
from shoal.models.architecture import Architecture
from shoal.models.files import open_model
from shoal.models.registry import read_architecture
from shoal.schedule.scheduler import Scheduler

Progress = Callable[[int, int], None]
_ITEM = {"float32": 4, "bfloat16": 2}
_NULL_LENGTH, _NULL_PAGES, _NULL_SLOT = 4096, 8192, 20
"""Tokens, pages, and the bytes that the null executor keeps for a token."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything decided before the weights are read.

    Attributes:
        dtype: float32 or bfloat16.
        kernels: compiled or plain.
        threads: compute threads.
        pages: pages of the KV pool.
        choices: what was chosen and why, one short phrase each.
        identity: what a calibration of its steps holds for; None without a model.
        cost: what steps were measured to cost here, None where that was not done yet.
    """

    config: EngineConfig
    model: TextModel
    architecture: Architecture | None
    dtype: str
    kernels: str
    threads: int
    pages: int
    choices: tuple[str, ...]
    identity: Identity | None = None
    cost: Cost | None = None

    @property
    def description(self) -> str:
        """The choices in one line."""
        return " · ".join(self.choices)

    @property
    def places(self) -> tuple[int, int] | None:
        """(how many, pages each) that pages are mapped into, None in other layouts."""
        if self.config.layout != "contiguous":
            return None
        return places_of(self.config, self.pages, self.model.max_model_len)

    @property
    def reuse(self) -> Reuse:
        """The policy that plans whole jobs; the engine itself never asks it."""
        return policies(self.config).reuse


class Policies(NamedTuple):
    """One policy for each seam; a system stands for several, as one object."""

    order: Order
    admission: Admission
    victim: Victim
    retention: Retention
    reuse: Reuse

    def distinct(self) -> list[Policy]:
        """Each object once, in order of the seams."""
        return list({id(policy): policy for policy in self}.values())


def prepare(config: EngineConfig, chat_template: str | None = None) -> Prepared:
    """Read the model's headers and choose what the configuration leaves open.

    Raises:
        OperatorError: the model cannot be read, or does not fit.
    """
    config = settled(config.checked())
    policies(config)
    if config.model == NULL_MODEL:
        return _prepare_null(config)
    files = open_model(config.model, config.load_format)
    architecture = read_architecture(files.config, str(files.path))
    kernels, kernels_why = _kernels(config)
    dtype, why = _dtype(config, files.stored_dtype, kernels)
    threads, threads_why = machine.threads(config.threads)
    weights = architecture.weight_bytes(_ITEM[dtype])
    token_bytes = architecture.kv_bytes_per_token(_ITEM[dtype])
    memory, memory_why = _kv_memory(config, weights)
    config, length, pages = _pool(config, architecture.longest, memory // token_bytes)
    size = pages * config.page_size
    _check_pool(config, size * token_bytes)
    places = f" in {pages} places" if config.layout == "slots" else ""
    if config.layout == "contiguous":
        shape = places_of(config, pages, length)
        mapped = contiguous.check(config, architecture, _ITEM[dtype], kernels == "compiled", *shape)
        places = f" in pages of {mapped >> 10} KiB, mapped side by side"
    model = StoredModel(files, architecture.embed.vocabulary, length, dtype, kernels, chat_template)
    identity = identity_of(
        architecture,
        dtype=dtype,
        device=config.device,
        kernels=kernels,
        threads=threads,
        layout=config.layout,
        page_size=config.page_size,
    )
    stored, trouble = load(identity)
    cost = stored.table if stored else None
    measured = f"steps measured {stored.measured[:10]}" if stored else trouble or "steps not measured yet"
    choices = (
        f"{files.name} ({architecture.name}, {architecture.parameter_count / 1e6:.0f}M)",
        f"{config.device} {dtype} ({why})",
        f"{threads} threads ({threads_why}), {machine.isa()}, {kernels} kernels{kernels_why}",
        f"KV {size * token_bytes / 2**30:.2f} GiB = {size:,} tokens{places} ({memory_why})",
        f"longest sequence {length:,}",
        policy_line(config),
        f"{measured}, {step_rows(config, cost, pages)} rows each at most",
    )
    return Prepared(config, model, architecture, dtype, kernels, threads, pages, choices, identity, cost)


def start(prepared: Prepared, progress: Progress | None = None) -> Engine:
    """Load the weights and build the engine.

    Args:
        progress: called with (bytes done, bytes in all) while weights are read.

    Raises:
        OperatorError: the weights cannot be read.
    """
    config = prepared.config
    executor: Executor
    if prepared.architecture is None:
        executor = NullExecutor(
            prepared.pages, config.page_size, prepared.model.vocabulary, time.perf_counter, reserved=RESERVED
        )
    else:
        machine.calm_threads()
        from shoal.engine.tensors.begin import begin

        begun = begin(prepared)
        from shoal.engine.tensors.start import model_executor

        executor = model_executor(prepared, progress, begun)
    return assemble(config, executor, prepared.model, prepared.cost)


def assemble(config: EngineConfig, executor: Executor, model: TextModel, cost: Cost | None = None) -> Engine:
    """An engine around an executor: table, memory, policies, scheduler.

    Args:
        cost: what policies are told about the seconds of a step.
    """
    table = SequenceTable()
    chosen = policies(config)
    rng = np.random.default_rng(config.seed)
    for policy in chosen.distinct():
        policy.bind(cost, rng)
    pool = table, executor.pages, executor.page_size
    memory: Layout = KVMemory(*pool, chosen.retention, config.prefix_reuse)
    layout = settled(config).layout
    if layout == "contiguous":
        places, _ = places_of(config, executor.pages, model.max_model_len)
        memory = ContiguousMemory(
            *pool, chosen.retention, config.prefix_reuse, places=places, length=model.max_model_len
        )
    if layout == "slots":
        memory = SlotMemory(*pool, compact=all(getattr(p, "compact", True) for p in chosen.distinct()))
    scheduler = Scheduler(
        table,
        memory,
        chosen.order,
        chosen.admission,
        chosen.victim,
        max_running=config.max_num_seqs,
        max_length=model.max_model_len,
    )
    return Engine(table, memory, scheduler, executor, model)


def places_of(config: EngineConfig, pages: int, length: int) -> tuple[int, int]:
    """(places, pages each) of layout ``contiguous``: one for each sequence that can hold pages at a time."""
    return min(config.max_num_seqs, pages), -(-length // config.page_size)


def settled(config: EngineConfig) -> EngineConfig:
    """The same with its layout chosen: what the system says, else paged. Nothing is shared in ``slots``."""
    layout = config.layout
    if layout == "auto":
        system = None if config.policy is None else make("policy", config.policy)
        layout = getattr(system, "layout", "paged")
    reuse = config.prefix_reuse and layout != "slots"
    return msgspec.structs.replace(config, layout=layout, prefix_reuse=reuse)


def policies(config: EngineConfig) -> Policies:
    """The policies of a configuration, not yet bound. The default admission takes its rows from
    ``max_num_batched_tokens`` where that is given.

    Raises:
        OperatorError: unknown name or parameter, or a value outside its range.
    """
    chosen = {seam: cast(str | Policy | None, getattr(config, seam)) for seam in SEAMS}
    system = None if config.policy is None else make("policy", config.policy)
    defaults = dict(DEFAULTS)
    if config.max_num_batched_tokens is not None:
        defaults["admission"] += f":rows={config.max_num_batched_tokens}"
    return Policies(**resolve(system, chosen, defaults))  # type: ignore[arg-type]


def step_rows(config: EngineConfig, cost: Cost | None, pages: int) -> int:
    """Most rows that the admission policy gives a step while nobody runs, once it knows ``cost``."""
    admission = policies(config).admission
    admission.bind(cost, np.random.default_rng(config.seed))
    idle = Load(now=0.0, running=0, waiting=1, singles=0, backlog=0, free_pages=pages, total_pages=pages)
    return admission.budget(idle).rows


def policy_line(config: EngineConfig) -> str:
    """The policies in force, for people: the system by name, then who answers which seams."""
    chosen = policies(config)
    parts = [] if config.policy is None else [f"system {_name(config.policy)}"]
    for policy in chosen.distinct():
        seams = [seam for seam, answering in chosen._asdict().items() if answering is policy]
        parts.append(f"{' + '.join(seams)} {policy!r}")
    parts += [f"layout {config.layout}"] if config.layout in ("contiguous", "slots") else []
    return ", ".join(parts) + ("" if config.prefix_reuse else ", prefix reuse off")


def _name(system: str | Policy) -> str:
    return system.partition(":")[0] if isinstance(system, str) else type(system).__name__


def _prepare_null(config: EngineConfig) -> Prepared:
    length = config.max_model_len or _NULL_LENGTH
    pages = max(_NULL_PAGES, -(-length // config.page_size))
    if config.layout == "slots":
        room = length * config.max_num_seqs if config.kv_memory is None else config.kv_memory // 8
        config, length, pages = _pool(config, length, room)
    elif config.kv_memory is not None:
        pages = config.kv_memory // (8 * config.page_size)
        length = _length(config, length, pages * config.page_size)
    _check_pool(config, pages * config.page_size * _NULL_SLOT)
    choices = ("null model: no weights, tokens are a function of the ids", policy_line(config))
    return Prepared(config, NullModel(length), None, "float32", "plain", 1, pages, choices)


def _dtype(config: EngineConfig, stored: str, kernels: str) -> tuple[str, str]:
    if config.dtype != "auto":
        return config.dtype, "as asked"
    if config.device == "cpu":
        if stored == "BF16" and kernels == "compiled" and machine.multiplies_bf16():
            return "bfloat16", "as stored, and this processor multiplies it"
        return "float32", "default on CPU"
    return ("bfloat16", "as stored") if stored != "F32" else ("float32", "as stored")


def _kernels(config: EngineConfig) -> tuple[str, str]:
    """(compiled or plain, why where that needs saying)."""
    fit, built = config.device == "cpu", machine.compiled()
    if config.kernels == "compiled" and not (fit and built):
        raise OperatorError(
            "there are no compiled kernels for this device"
            if built
            else "the compiled kernels were not built",
            remedy="use --kernels plain" if built else "install shoal where there is a C++ compiler",
        )
    if config.kernels == "auto" and fit and not built:
        return "plain", " (no compiler when shoal was installed)"
    return ("compiled" if config.kernels != "plain" and fit else "plain"), ""


def _kv_memory(config: EngineConfig, weights: int) -> tuple[int, str]:
    """(bytes for the KV pool, why)."""
    if config.kv_memory is not None:
        return config.kv_memory, "as asked"
    if config.device != "cpu":
        from shoal.engine.tensors.start import device_memory

        free, reserve = device_memory(config.device), machine.DEVICE_RESERVE
    else:
        free, reserve = machine.memory(), machine.RESERVE
    left = free - weights - reserve
    why = f"{free / 2**30:.1f} GiB free, weights {weights / 2**30:.2f}, reserve {reserve / 2**30:.1f}"
    if left <= 0:
        raise OperatorError(f"no memory left for KV: {why}", remedy="use a smaller model or --kv-memory")
    return left, why


def _check_pool(config: EngineConfig, size: int) -> None:
    """A pool larger than the memory could be allocated, and would end the process once it filled."""
    if config.device == "cpu" and size > (free := machine.memory()):
        raise OperatorError(
            f"a KV pool of {size / 2**30:,.1f} GiB does not fit, {free / 2**30:.1f} GiB are free",
            remedy="lower --kv-memory or --max-model-len",
        )


def _pool(config: EngineConfig, longest: int, room: int) -> tuple[EngineConfig, int, int]:
    """(the configuration with its page size, longest sequence, pages) where ``room`` tokens fit.

    A page of layout ``slots`` is a place of one whole sequence. There are no more pages than
    ``max_num_seqs`` sequences can use.
    """
    if config.layout == "slots":
        length = _length(config, longest, room)
        config = msgspec.structs.replace(config, page_size=length)
    else:
        length = _length(config, longest, room // config.page_size * config.page_size)
    pages = min(room // config.page_size, config.max_num_seqs * -(-length // config.page_size))
    return config, length, pages


def _length(config: EngineConfig, longest: int, slots: int) -> int:
    if config.max_model_len is not None:
        if config.max_model_len > longest:
            raise OperatorError(
                f"--max-model-len {config.max_model_len} is above the model's {longest}", remedy="lower it"
            )
        if config.max_model_len > slots:
            raise OperatorError(
                f"--max-model-len {config.max_model_len} does not fit the KV pool of {slots} tokens",
                remedy="lower it or raise --kv-memory",
            )
        return config.max_model_len
    if slots < 2:
        raise OperatorError("the KV pool holds less than two tokens", remedy="raise --kv-memory")
    return min(longest, slots)
