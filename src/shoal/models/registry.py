"""Every architecture by the class name that stands in ``config.json``, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.core.errors import OperatorError
from shoal.core.registry import Registry
from shoal.models.architecture import Architecture
from shoal.models.config import ConfigReader

ARCHITECTURES = Registry(
    "architecture",
    {
        "LlamaForCausalLM": "shoal.models.llama:llama",
        "MistralForCausalLM": "shoal.models.mistral:mistral",
        "Qwen2ForCausalLM": "shoal.models.qwen2:qwen2",
        "Qwen3ForCausalLM": "shoal.models.qwen3:qwen3",
        "Gemma3ForCausalLM": "shoal.models.gemma3:gemma3",
        "Gemma3ForConditionalGeneration": "shoal.models.gemma3:gemma3_with_vision",
    },
)


def read_architecture(values: Mapping[str, Any], where: str = "config.json") -> Architecture:
    """The architecture that a ``config.json`` (as parsed) describes.

    Raises:
        OperatorError: the architecture is unknown, a field is missing, wrong or not known; names it.
    """
    named = values.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise OperatorError(
            "architectures must be a list of one class name", where=where, remedy="correct the file"
        )
    if named[0] not in ARCHITECTURES.names():
        raise OperatorError(
            f"architecture {named[0][:80]!r} is not one shoal computes",
            where=where,
            remedy=f"use a model of: {', '.join(ARCHITECTURES.names())}",
        )
    config = ConfigReader(values, where)
    architecture: Architecture = ARCHITECTURES.get(named[0])(config)
    config.finish()
    return architecture
