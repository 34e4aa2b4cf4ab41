"""What of a model can be loaded before torch is there, whose import takes longer than most else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.core.errors import InternalError
from shoal.engine.model import StoredModel
from shoal.kernels.native import Session
from shoal.models.tensors.ahead import Ahead

if TYPE_CHECKING:
    from shoal.engine.build import Prepared

STORED = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Begun:
    """session: compiled kernels, None where plain ones compute. ahead: reads matrices, None where nothing is
    read without torch."""

    session: Session | None
    ahead: Ahead | None


def begin(prepared: Prepared) -> Begun:
    """Start to build the tokenizer and to read what needs no torch, each on a thread of its own.

    Raises:
        OperatorError: tensors are missing, or not those of the architecture.
    """
    model, architecture = prepared.model, prepared.architecture
    if not isinstance(model, StoredModel) or architecture is None:
        raise InternalError("a model executor was asked for without a stored model")
    model.read_ahead()
    if prepared.kernels != "compiled":
        return Begun(None, None)
    session = Session(prepared.threads)
    if prepared.config.load_format == "dummy":
        return Begun(session, None)
    return Begun(session, Ahead(architecture, model.files, STORED[prepared.dtype], session))
