"""Where one stored tensor lies in its file, under the name the rest of shoal knows it by."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Transform = Literal["none", "unpermute", "minus_one"]


class TensorInfo(msgspec.Struct, frozen=True):
    """One tensor of a model's files.

    Attributes:
        name: Hugging Face name, for example ``model.layers.0.self_attn.q_proj.weight``.
        shape: sizes in torch order, rows first.
        stored: type in the file: F32, F16, BF16, or a GGUF block type such as Q4_K.
        file: the file that holds it.
        offset: first byte, counted from the start of the file.
        size: bytes in the file.
        transform: what turns stored values into the Hugging Face ones. ``unpermute`` undoes the
            row order llama.cpp's converter gives q and k of the llama architecture (``heads`` heads);
            ``minus_one`` undoes the one it adds to Gemma's norm weights.
        heads: attention heads among the rows, for ``unpermute``.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    file: Path
    offset: int
    size: int
    transform: Transform = "none"
    heads: int = 0
