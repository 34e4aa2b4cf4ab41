"""shoal: a batch-first inference engine for language models.

``from shoal import LLM, SamplingParams`` is the Python entry; names are resolved lazily, so that
``import shoal`` imports neither torch nor any room that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.core.request import Constraint, SamplingParams
    from shoal.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "Constraint", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "shoal.llm",
    "SamplingParams": "shoal.core.request",
    "Constraint": "shoal.core.request",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
