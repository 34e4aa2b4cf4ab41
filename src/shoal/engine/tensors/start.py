"""From what was decided before loading to an executor that computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from shoal.core.errors import InternalError, OperatorError
from shoal.engine.masks import MaskCompiler
from shoal.engine.model import StoredModel
from shoal.engine.tensors.begin import Begun, begin
from shoal.engine.tensors.model_executor import ModelExecutor
from shoal.engine.tensors.sampler import Sampler
from shoal.models.tensors.compiled import CompiledModel
from shoal.models.tensors.model import Model
from shoal.models.tensors.read import TensorReader
from shoal.models.tensors.weights import dummy_source, load_weights

if TYPE_CHECKING:
    from shoal.engine.build import Prepared

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model_executor(
    prepared: Prepared,
    progress: Callable[[int, int], None] | None = None,
    begun: Begun | None = None,
) -> ModelExecutor:
    """Weights read and KV pool set up as ``prepared`` says; sets torch's threads for the whole process.

    Args:
        begun: what was begun before torch was there.

    Raises:
        OperatorError: the weights cannot be read or do not fit, or the device is not there.
    """
    model, architecture, config = prepared.model, prepared.architecture, prepared.config
    if not isinstance(model, StoredModel) or architecture is None:
        raise InternalError("a model executor was asked for without a stored model")
    begun = begin(prepared) if begun is None else begun
    torch.set_num_threads(prepared.threads)
    device = _device(config.device)
    dummy = config.load_format == "dummy"
    source = dummy_source(architecture, config.seed) if dummy else TensorReader(model.files, begun.session)
    dtype = DTYPES[prepared.dtype]
    ready = {} if begun.ahead is None else begun.ahead.take(progress)
    shapes = {parameter.name: parameter.shape for parameter in architecture.parameters()}
    matrices = {name: torch.from_numpy(room).view(dtype)[: shapes[name][0]] for name, room in ready.items()}
    weights = load_weights(architecture, source, dtype, device, progress, begun.session, matrices)
    return ModelExecutor(
        CompiledModel(architecture, weights, begun.session)
        if begun.session
        else Model(architecture, weights),
        Sampler(model.vocabulary, device, _masks(model)),
        prepared.pages,
        config.page_size,
        time.perf_counter,
        places=prepared.places,
        record_margins=config.record_margins,
    )


def device_memory(device: str) -> int:
    """Bytes that are free on an accelerator.

    Raises:
        OperatorError: the device is not there.
    """
    return torch.cuda.mem_get_info(_device(device))[0]


def _masks(model: StoredModel) -> MaskCompiler | None:
    """Ids can be computed without a tokenizer; who then asks for a constraint is told so by the sampler."""
    return model.masks if model.files.has_tokenizer else None


def _device(name: str) -> torch.device:
    if name != "cpu" and not torch.cuda.is_available():
        raise OperatorError(f"torch sees no device {name!r}", remedy="use --device cpu, or a torch with CUDA")
    device = torch.device(name)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise OperatorError(
            f"torch sees {torch.cuda.device_count()} devices, not {name!r}", remedy="name one of them"
        )
    return device
