"""Reads a ``config.json`` field by field and remembers which were read.

The file is input from a stranger: every value is checked for type and range, and after an architecture
has taken what it knows, whatever remains must be known not to change the mathematics. Nothing is ignored
because nobody had heard of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from shoal.core.errors import OperatorError

T = TypeVar("T")
REQUIRED: Any = object()

# Far above every published model; they bound what a hostile file can make us allocate.
MAX_SIZE = 1 << 24
MAX_LAYERS = 1024

# Fields that say who made the model, how it was trained, stored, or is to be sampled from by default.
_HARMLESS = """
    _name_or_path name_or_path architectures model_type transformers_version torch_dtype dtype auto_map
    use_cache initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop classifier_dropout
    pad_token_id bos_token_id eos_token_id sep_token_id decoder_start_token_id forced_bos_token_id
    forced_eos_token_id unk_token_id tokenizer_class task_specific_params finetuning_task problem_type
    id2label label2id num_labels output_attentions output_hidden_states output_scores return_dict
    return_dict_in_generate use_return_dict torchscript tf_legacy_loss use_bfloat16 is_decoder prefix
    gradient_checkpointing attn_implementation _attn_implementation _attn_implementation_autoset
    _attn_implementation_internal _flash_attn_2_enabled cache_implementation chunk_size_feed_forward
    pretraining_tp bad_words_ids suppress_tokens begin_suppress_tokens do_sample early_stopping max_length
    min_length max_new_tokens num_beams num_beam_groups diversity_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences remove_invalid_values
    exponential_decay_length_penalty repetition_penalty temperature top_k top_p typical_p
    unsloth_fixed unsloth_version is_llama_config keys_to_ignore_at_inference tokenizer_vocab_size
    transformers.js_config neftune_noise_alpha max_sequence_length model_max_length _commit_hash
"""
HARMLESS = frozenset(_HARMLESS.split())
# Fields that would change the mathematics, and the values with which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "quantization_config": (),
    "use_bidirectional_attention": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1, 1.0),
    "use_qk_norm": (False,),
    "use_mrope": (False,),
}


class ConfigReader:
    """One JSON object of a configuration. A null is an absent field.

    Args:
        values: the object.
        where: for messages, the file.
        inside: for messages, the dotted name of this object in the file.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json", inside: str = "") -> None:
        self.values = values
        self.where = where
        self.inside = inside
        self._read: set[str] = set()
        self._assumed: dict[str, Any] = {}

    def assume(self, **defaults: Any) -> None:
        """What absent fields mean for this architecture; configurations leave them out."""
        self._assumed.update(defaults)

    def refuse(self, name: str, why: str, remedy: str = "correct the file, or use another model") -> NoReturn:
        """Raises OperatorError about the field ``name``."""
        raise OperatorError(f"{self.inside}{name[:80]} {why}", where=self.where, remedy=remedy)

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """The value as it stands; where it is absent or null, what was assumed, else ``default``."""
        self._read.add(name)
        value = self.values.get(name)
        if value is None:
            value = self._assumed.get(name, default)
        if value is REQUIRED:
            self.refuse(name, "is missing")
        return value

    def integer(self, name: str, default: Any = REQUIRED, *, low: int = 1, high: int = MAX_SIZE) -> int:
        """A whole number within ``low .. high``; ``default`` is returned unchecked."""
        value = self.take(name, default)
        if value is default:
            return value
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(name, f"must be a whole number, not {_show(value)}")
        if not low <= value <= high:
            self.refuse(name, f"is {_show(value)}, outside {low}..{high}")
        return value

    def number(self, name: str, default: Any = REQUIRED, *, low: float = 0.0, high: float = 1e12) -> float:
        """A finite number above ``low`` and at most ``high``; ``default`` is returned unchecked."""
        value = self.take(name, default)
        if value is default:
            return value
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.refuse(name, f"must be a number, not {_show(value)}")
        if not low < value <= high:
            self.refuse(name, f"is {_show(value)}, outside {low}..{high}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            self.refuse(name, f"must be true or false, not {_show(value)}")
        return value

    def choice(self, name: str, default: str, options: Mapping[str, T]) -> T:
        """What ``options`` says for the text that stands there."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in options:
            self.refuse(name, f"is {_show(value)}; shoal computes {', '.join(options)}")
        return options[value]

    def texts(self, name: str, *, count: int, options: Sequence[str]) -> list[str] | None:
        """A list of ``count`` texts, each one of ``options``, or None where it is absent."""
        value = self.take(name, None)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count:
            self.refuse(name, f"must be a list of {count} names")
        for item in value:
            if item not in options:
                self.refuse(name, f"holds {_show(item)}; shoal computes {', '.join(options)}")
        return value

    def section(self, name: str) -> ConfigReader | None:
        """The object under ``name``, or None where it is absent; call its ``finish`` when it is read."""
        value = self.take(name, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(name, f"must be an object, not {_show(value)}")
        return ConfigReader(value, self.where, f"{self.inside}{name}.")

    def finish(self, harmless: frozenset[str] = HARMLESS) -> None:
        """Refuse the first field that nobody read and that might change the mathematics.

        Raises:
            OperatorError: names the field.
        """
        for name, value in self.values.items():
            if value is None or name in self._read or name in harmless:
                continue
            if name in NEUTRAL:
                if not any(type(value) is type(same) and value == same for same in NEUTRAL[name]):
                    self.refuse(name, f"is {_show(value)}, which shoal does not compute")
                continue
            self.refuse(
                name,
                f"is a field shoal does not know (value {_show(value)}); it might change the answers",
                "remove it if it does not change the mathematics, or use another model",
            )


def _show(value: Any) -> str:
    """A short text of a value that may be long."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not a finite number"
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
