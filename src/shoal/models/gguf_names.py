"""GGUF metadata and tensor names in Hugging Face terms, so that one path reads every model.

The rules are those of llama.cpp's converter (convert_hf_to_gguf.py) read backwards: for the llama
architecture it reorders the rows of q and k within each head, for Gemma it adds one to every norm
weight, and it leaves the output matrix out where that is the embedding matrix.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from shoal.core.errors import OperatorError
from shoal.models.gguf import GgufHeader
from shoal.models.tensor_info import TensorInfo, Transform

ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
ROPE_FACTORS = "rope_freqs.weight"

_MODEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_PRE_NORM_NAMES = {"ffn_norm": "post_attention_layernorm"}
_GEMMA_NORM_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER = re.compile(r"blk\.(\d{1,5})\.([a-z_]+)\.(weight|bias)")

# Keys under the architecture that are read below or change nothing in the mathematics. Any other key
# there may change it, and is refused by name.
_KNOWN_KEYS = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scale_linear",
}
# Keys whose one harmless value says what is computed anyway.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth", ""),
}


class GgufNames:
    """One GGUF header read in Hugging Face terms.

    Attributes:
        config: what the model's ``config.json`` would say.
        tensors: by Hugging Face name, with the transform each needs.

    Raises:
        OperatorError: an architecture, key or tensor that shoal does not know, or a missing one.
    """

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.where = str(header.path)
        architecture = header.metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            raise self._refusal(
                f"architecture {str(architecture)[:40]!r} is not supported",
                f"use one of {', '.join(ARCHITECTURES)}",
            )
        self.architecture = architecture
        self._refuse_unknown_keys()
        self.config = self._config()
        self.tensors = {info.name: info for info in map(self._tensor, header.tensors) if info is not None}

    def _refusal(self, what: str, remedy: str = "convert the model again") -> OperatorError:
        return OperatorError(what, where=self.where, remedy=remedy)

    def _refuse_unknown_keys(self) -> None:
        if self.header.metadata.get("split.count", 1) not in (0, 1):
            raise self._refusal(
                "one part of a split GGUF", "merge the parts into one file (llama-gguf-split)"
            )
        prefix = self.architecture + "."
        for key, value in self.header.metadata.items():
            if not key.startswith(prefix):
                continue
            name = key.removeprefix(prefix)
            if name in _KNOWN_KEYS or (name in _HARMLESS and _plain(value) in _HARMLESS[name]):
                continue
            raise self._refusal(
                f"metadata {key[:80]!r} = {str(value)[:40]} changes the model in a way shoal does not know",
                "use another conversion of the model",
            )

    def _get(self, name: str, kind: type, default: Any = None) -> Any:
        """A scalar under the architecture's prefix; None as default means that it must be there."""
        key = f"{self.architecture}.{name}"
        value = self.header.metadata.get(key, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if value is None:
            raise self._refusal(f"metadata {key!r} is missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self._refusal(f"metadata {key!r} is {str(value)[:40]}, not {kind.__name__}")
        return value

    def _config(self) -> dict[str, Any]:
        tensors = self.header.tensors
        if "token_embd.weight" not in tensors:
            raise self._refusal("tensor 'token_embd.weight' is missing")
        hidden, heads = self._get("embedding_length", int), self._get("attention.head_count", int)
        if heads < 1:
            raise self._refusal("attention.head_count is 0")
        model_type, class_name = ARCHITECTURES[self.architecture]
        rotary = self._get("rope.dimension_count", int, hidden // heads)
        head_size = self._get("attention.key_length", int, rotary)
        if "rope.dimension_count" in self._stated() and rotary != head_size:
            raise self._refusal(f"rope.dimension_count {rotary} is not the head size {head_size}")
        if self._get("attention.value_length", int, head_size) != head_size:
            raise self._refusal("attention.value_length is not attention.key_length")
        config: dict[str, Any] = {
            "architectures": [class_name],
            "model_type": model_type,
            "vocab_size": tensors["token_embd.weight"].shape[0],
            "hidden_size": hidden,
            "intermediate_size": self._get("feed_forward_length", int),
            "num_hidden_layers": self._get("block_count", int),
            "num_attention_heads": heads,
            "num_key_value_heads": self._get("attention.head_count_kv", int, heads),
            "head_dim": head_size,
            "max_position_embeddings": self._get("context_length", int),
            "rms_norm_eps": self._get("attention.layer_norm_rms_epsilon", float),
            "rope_theta": self._get("rope.freq_base", float, 10000.0),
            "rope_scaling": self._rope_scaling(),
            "tie_word_embeddings": "output.weight" not in tensors,
        }
        if self.architecture == "gemma3":
            config |= self._gemma(config)
        else:
            config |= {"hidden_act": "silu"} | self._window_and_biases()
        return config

    def _stated(self) -> set[str]:
        return {key.removeprefix(self.architecture + ".") for key in self.header.metadata}

    def _window_and_biases(self) -> dict[str, Any]:
        window = self._get("attention.sliding_window", int, 0)
        if self.architecture == "qwen2" or (self.architecture == "qwen3" and window):
            return (
                {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
                if window
                else {}
            )
        if window:
            # Only Mistral among the models of the llama architecture has a window, on every layer.
            return {
                "model_type": "mistral",
                "architectures": ["MistralForCausalLM"],
                "sliding_window": window,
            }
        names = self.header.tensors
        biases = {"attention_bias": "blk.0.attn_q.bias" in names}
        return biases | ({"mlp_bias": "blk.0.ffn_down.bias" in names} if self.architecture == "llama" else {})

    def _gemma(self, config: dict[str, Any]) -> dict[str, Any]:
        layers = config["num_hidden_layers"]
        # Every sixth layer is global unless the file says otherwise (llama.cpp, llm_arch gemma3).
        pattern = self.header.metadata.get("gemma3.attention.sliding_window_pattern", 6)
        if isinstance(pattern, np.ndarray):
            windowed = [bool(flag) for flag in pattern]
            if len(windowed) != layers:
                raise self._refusal("attention.sliding_window_pattern does not have one flag a layer")
        elif isinstance(pattern, int) and pattern > 0 and layers <= 1 << 16:
            windowed = [(layer + 1) % pattern != 0 for layer in range(layers)]
        else:
            raise self._refusal(f"attention.sliding_window_pattern is {str(pattern)[:40]}")
        # 27B alone, known by its 62 layers, scales queries by hidden/heads (llama.cpp does the same).
        scalar = (
            config["hidden_size"] // config["num_attention_heads"] if layers == 62 else config["head_dim"]
        )
        return {
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": self._get("attention.sliding_window", int),
            "layer_types": ["sliding_attention" if flag else "full_attention" for flag in windowed],
            "rope_local_base_freq": self._get("rope.freq_base_swa", float, 10000.0),
            "query_pre_attn_scalar": scalar,
            "attention_bias": "blk.0.attn_q.bias" in self.header.tensors,
        }

    def _rope_scaling(self) -> dict[str, Any] | None:
        """``factors`` divides each frequency by its own number: what remains of Llama 3's rule in GGUF."""
        kind = self._get("rope.scaling.type", str, "none")
        if ROPE_FACTORS in self.header.tensors:
            if kind != "none":
                raise self._refusal(f"both {ROPE_FACTORS} and rope scaling {kind!r} are stated")
            return {"rope_type": "factors", "factors": self._rope_factors()}
        if kind == "none":
            factor = self._get("rope.scale_linear", float, 1.0)
            return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
        factor = self._get("rope.scaling.factor", float)
        if kind == "linear":
            return {"rope_type": "linear", "factor": factor}
        if kind != "yarn":
            raise self._refusal(f"rope scaling {kind[:40]!r} is not supported", "use linear or yarn")
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": self._get(
                "rope.scaling.original_context_length", int, self._get("context_length", int)
            ),
            "beta_fast": self._get("rope.scaling.yarn_beta_fast", float, 32.0),
            "beta_slow": self._get("rope.scaling.yarn_beta_slow", float, 1.0),
        }

    def _rope_factors(self) -> list[float]:
        tensor = self.header.tensors[ROPE_FACTORS]
        if tensor.stored != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > 1 << 16:
            raise self._refusal(f"tensor {ROPE_FACTORS!r} is not a row of F32 numbers")
        with self.header.path.open("rb") as file:
            file.seek(tensor.offset)
            factors = np.frombuffer(file.read(tensor.size), dtype="<f4")
        if not np.all(np.isfinite(factors)) or not np.all(factors > 0):
            raise self._refusal(f"tensor {ROPE_FACTORS!r} holds a number that is not above zero")
        return [float(factor) for factor in factors]

    def _tensor(self, stored_name: str) -> TensorInfo | None:
        if stored_name == ROPE_FACTORS:
            return None
        gemma = self.architecture == "gemma3"
        name, part = _MODEL_NAMES.get(stored_name), ""
        if name is None and (match := _LAYER.fullmatch(stored_name)):
            layer, part, ending = match.groups()
            names = _LAYER_NAMES | (_GEMMA_NORM_NAMES if gemma else _PRE_NORM_NAMES)
            if part in names:
                name = f"model.layers.{int(layer)}.{names[part]}.{ending}"
        if name is None:
            raise self._refusal(
                f"tensor {stored_name[:80]!r} has no place in the architecture {self.architecture}",
                "use another conversion of the model",
            )
        tensor = self.header.tensors[stored_name]
        if len(tensor.shape) == 1 and tensor.stored not in ("F32", "F16", "BF16"):
            raise self._refusal(f"tensor {stored_name[:80]!r} is a vector stored as {tensor.stored}")
        transform: Transform = "none"
        heads = 0
        if self.architecture == "llama" and part in ("attn_q", "attn_k"):
            transform = "unpermute"
            heads = self.config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
            if heads < 1 or tensor.shape[0] % (2 * heads):
                raise self._refusal(
                    f"tensor {stored_name[:80]!r} has {tensor.shape[0]} rows for {heads} heads"
                )
        elif gemma and name.endswith("norm.weight"):
            transform = "minus_one"
        return TensorInfo(
            name, tensor.shape, tensor.stored, self.header.path, tensor.offset, tensor.size, transform, heads
        )


def _plain(value: Any) -> Any:
    """The value, or None for an array, which equals no harmless value."""
    return None if isinstance(value, np.ndarray | list) else value
