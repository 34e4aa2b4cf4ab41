"""Who takes part: each contestant's environment, program, model form and settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MODELS = ("llama135m", "gemma270m")
LLAMA, GEMMA = MODELS
PAIRS = 5
"""Alternating pairs a cell."""


@dataclass(frozen=True)
class Peer:
    """A contestant beside shoal.

    Attributes:
        environment: name in ``environments.ENVIRONMENTS``.
        module: its program in ``contestants/``.
        form: what it loads: folder, gguf or ir.
        variant: settings in which contestants of one package differ.
        pairs: pairs a cell, None for the usual number.
        models: those that it runs.
        tier: by model, why it is not in the same class; such rows are nobody's "best peer".
    """

    name: str
    environment: str
    module: str
    form: str
    variant: dict[str, Any] = field(default_factory=dict)
    pairs: int | None = None
    models: tuple[str, ...] = (LLAMA,)
    tier: dict[str, str] = field(default_factory=dict)


_BOTH = MODELS
_FOUR_BITS = {GEMMA: "4-bit weights: another class"}
PEERS = {
    peer.name: peer
    for peer in (
        Peer("vllm", "vllm", "on_vllm", "folder", models=_BOTH),
        Peer("vllm-eager", "vllm", "on_vllm", "folder", {"eager": True}, models=_BOTH),
        Peer("vllm-zentorch", "vllm-zentorch", "on_vllm", "folder", models=_BOTH),
        Peer("openvino", "openvino", "on_openvino", "ir"),
        Peer(
            "llama.cpp", "llama.cpp", "on_llama_cpp", "gguf", {"unified": True}, models=_BOTH, tier=_FOUR_BITS
        ),
        Peer("llama.cpp-split", "llama.cpp", "on_llama_cpp", "gguf", {"unified": False}),
        Peer("transformers", "transformers", "on_transformers", "folder", pairs=1),
    )
}

THRESHOLDS = {
    LLAMA: {"shared": 1.3, "mixed": 1.2, "decode": 1.35, "single": 1.5, "forest": 4.0},
    GEMMA: {"shared": 1.3, "mixed": 1.3, "decode": 1.3, "single": 2.5, "forest": 1.3},
}
"""Least median ratio of shoal's tokens/s to those of the best peer."""
SHARES = {"shared": 0.8, "mixed": 0.8, "decode": 0.8, "single": 0.7, "forest": 0.7}
"""Least share of the limit."""
