"""A ``config.json`` is input from a stranger: read, or refused by the name of the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import OperatorError
from shoal.models.registry import ARCHITECTURES, read_architecture
from tests.sizes import size

SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def small(name: str = "Llama", **fields: Any) -> dict[str, Any]:
    return SMALL | {"architectures": [f"{name}ForCausalLM"]} | fields


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("Llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("Gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("Gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("Llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("Llama", {"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ("Llama", {"sliding_window": 16}, "sliding_window"),
        ("Qwen2", {"attention_bias": False}, "attention_bias"),
        ("Llama", {"hidden_act": "relu"}, "hidden_act"),
        ("Llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("Llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type"),
        ("Llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "twist": 1}}, "rope_scaling.twist"),
        (
            "Llama",
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor",
        ),
        ("Qwen3", {"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ("Gemma3", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ("Gemma3", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("Llama", {"layer_types": ["full_attention"] * 4}, "layer_types"),
    ],
)
def test_what_would_change_the_mathematics_is_refused_by_name(name: str, fields: dict, said: str) -> None:
    with pytest.raises(OperatorError) as caught:
        read_architecture(small(name, **fields), "here/config.json")
    assert said in str(caught.value)
    assert str(caught.value).startswith("here/config.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_logit_softcapping": None, "quantization_config": None, "partial_rotary_factor": 1.0},
        {"attention_dropout": 0.1, "use_cache": False, "pretraining_tp": 2, "torch_dtype": "bfloat16"},
        {
            "dtype": "float32",
            "eos_token_id": [2, 3],
            "auto_map": {"AutoModel": "evil.py"},
            "temperature": 0.6,
        },
        {"rope_scaling": None, "rope_parameters": None, "id2label": {"0": "a"}, "never_heard_of": None},
    ],
)
def test_what_changes_nothing_is_taken(fields: dict) -> None:
    assert read_architecture(small(**fields)) == read_architecture(small())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 10**400}, "hidden_size"),
        ({"hidden_size": 66}, "num_attention_heads"),
        ({"hidden_size": 20}, "even"),
        ({"head_dim": 15}, "head_dim"),
        ({"head_dim": 1 << 40}, "head_dim"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers"),
        ({"vocab_size": 1 << 23, "hidden_size": 1 << 23, "head_dim": 2}, "parameters"),
        ({"vocab_size": [1]}, "vocab_size"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ({"rope_theta": 1}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 0}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": ["yarn"]}}, "rope_scaling.type"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 5}},
            "contradict",
        ),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "must be a number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"architectures": []}, "architectures"),
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
    ],
)
def test_a_wrong_value_is_refused_by_name(fields: dict, said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        read_architecture(small(**fields))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([0, -1, 1, 2**31, 2**63, "yarn", "llama3", "full_attention", 10**30, 1e300]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
SCALING = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0}
FIELDS = [
    *SMALL,
    "head_dim",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "layer_types",
    "sliding_window",
    "sliding_window_pattern",
    "use_sliding_window",
    "max_window_layers",
    "query_pre_attn_scalar",
    "rms_norm_eps",
    "hidden_act",
    "text_config",
]


@given(
    st.sampled_from(ARCHITECTURES.names()),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=3),
    st.none()
    | st.dictionaries(st.sampled_from([*SCALING, "type", "mscale", "truncate"]), values, max_size=2),
)
@settings(max_examples=size(300, 3000), deadline=None)
def test_any_configuration_is_read_or_refused(name: str, fields: dict, scaling: dict | None) -> None:
    config = SMALL | {"architectures": [name]} | fields
    if name == "Gemma3ForConditionalGeneration":
        config = {
            "architectures": [name],
            "text_config": {k: v for k, v in config.items() if k != "architectures"},
        }
    if scaling is not None:
        config["rope_scaling"] = SCALING | scaling
    refusal = ""
    try:
        architecture = read_architecture(config)
    except OperatorError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert len(refusal) < 2000
        return
    assert architecture.parameter_count > 0
    for layer in architecture.layers[:4]:
        layer.attention.rotary.inverse_frequencies()


def test_nothing_of_the_reader_needs_the_order_of_fields() -> None:
    config = small("Qwen3", head_dim=16, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    turned = json.loads(json.dumps(dict(reversed(config.items()))))
    assert read_architecture(config) == read_architecture(turned)
