"""What an engine is built from: one typed value, every field documented, unknown values refused."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

import msgspec

from shoal.core.errors import OperatorError
from shoal.core.policy import SEAMS, Policy

NULL_MODEL = "null"
"""The model name under which no model is loaded: tokens are a function of the known ids."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine is to be built. ``None`` means chosen by shoal and printed.

    Attributes:
        model: Hugging Face id or folder, a GGUF file, ``demo``, or ``null``.
        load_format: auto, or dummy for random weights.
        dtype: type of weights, activations and KV: auto, float32 or bfloat16.
        device: cpu or cuda, cuda:1, ...
        kernels: what computes the model: compiled (on the CPU, where the package was built with them), plain
            (torch operators), or auto.
        threads: compute threads; None takes what affinity mask and cgroup quota allow.
        kv_memory: bytes of the KV pool; None takes what is left after the weights, less a reserve.
        max_model_len: longest sequence; None takes the model's, or what the pool holds if that is less.
        max_num_seqs: most sequences that compute side by side.
        max_num_batched_tokens: most rows in a step, the default admission's ``rows``; None takes what was
            measured to be best here, else 512.
        page_size: token positions a page.
        prefix_reuse: whether sequences take each other's full pages.
        layout: how K/V lies in memory: paged, contiguous (pages mapped side by side for each sequence), or
            slots (one fixed stretch a sequence, nothing shared).
        policy: a published system, for all seams that it answers.
        order, admission, victim, retention, reuse: policies, as ``name:parameter=value`` or objects; None
            takes the system's, else the default (``shoal.core.policies.DEFAULTS``).
        seed: of the policies' generator.
        record_margins: keep how close the two best logits were (tests of equality need it).
    """

    model: str
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "cpu"
    kernels: Literal["auto", "compiled", "plain"] = "auto"
    threads: int | None = None
    kv_memory: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    page_size: int = 16
    prefix_reuse: bool = True
    layout: Literal["auto", "paged", "contiguous", "slots"] = "auto"
    policy: str | Policy | None = None
    order: str | Policy | None = None
    admission: str | Policy | None = None
    victim: str | Policy | None = None
    retention: str | Policy | None = None
    reuse: str | Policy | None = None
    seed: int = 0
    record_margins: bool = False

    def checked(self) -> EngineConfig:
        """The same value with every field of its type and every number in its range.

        Raises:
            OperatorError: names the first field that is not.
        """
        for known in msgspec.structs.fields(self):
            value = getattr(self, known.name)
            try:
                # A policy is checked where it is made.
                msgspec.convert(value, Any if known.name in (*SEAMS, "policy") else known.type)
            except msgspec.ValidationError as error:
                names = ", ".join(name for name in get_args(known.type) if isinstance(name, str))
                remedy = f"valid: {names}" if names else "correct it"
                raise OperatorError(f"{known.name} is {value!r}: {error}", remedy=remedy) from None
        least = {"max_num_seqs": 1, "page_size": 1}
        optional = {"threads": 1, "kv_memory": 1, "max_model_len": 2, "max_num_batched_tokens": 1}
        for name, low in (least | optional).items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise OperatorError(f"{name} is {value}", remedy=f"give at least {low}")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise OperatorError(f"unknown device {self.device!r}", remedy="valid: cpu, cuda, cuda:N")
        return self


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """``"2GiB"``, ``"500MB"`` or a plain number of bytes.

    Raises:
        OperatorError: not a size.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmg]i?)?b?\s*", text.lower())
    if not found:
        raise OperatorError(f"cannot read the size {text!r}", remedy="write for example 2GiB or 500MB")
    return int(float(found[1]) * _UNITS[found[2] or ""])
