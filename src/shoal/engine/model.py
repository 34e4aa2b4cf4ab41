"""The cold side of a model: its text, its limits and its identity. No weights, no torch."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from functools import cached_property
from typing import Any, Protocol

from shoal.core.errors import CallerError
from shoal.core.request import Constraint
from shoal.engine.masks import MaskCompiler
from shoal.engine.null_model import NullModel
from shoal.models import chat
from shoal.models.files import ModelFiles
from shoal.models.tokenizer import Tokenizer


class TextModel(Protocol):
    """What jobs, ``LLM`` and servers ask of a model.

    Attributes:
        name: as the caller named it.
        identity: what must be the same for answers to be the same; plain values.
        max_model_len: most tokens of prompt and answer together.
        vocabulary: ids run from 0 to vocabulary - 1.
        end_ids: ids that end an answer.
    """

    name: str
    identity: dict[str, Any]
    max_model_len: int
    vocabulary: int
    end_ids: tuple[int, ...]

    @property
    def tokenizer(self) -> Any: ...

    def render(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str: ...

    def check_constraint(self, constraint: Constraint) -> None: ...


class StoredModel:
    """A ``TextModel`` over a model's files."""

    def __init__(
        self,
        files: ModelFiles,
        vocabulary: int,
        max_model_len: int,
        dtype: str,
        kernels: str,
        chat_template: str | None = None,
    ) -> None:
        self.files = files
        self.name = files.name
        self.vocabulary = vocabulary
        self.max_model_len = max_model_len
        self.end_ids = files.end_ids
        self.chat_template = chat_template or files.chat_template
        self.identity: dict[str, Any] = {
            "model": files.fingerprint(),
            "dtype": dtype,
            "kernels": kernels,
            "max_model_len": max_model_len,
            "chat_template": hashlib.blake2b((self.chat_template or "").encode(), digest_size=8).hexdigest(),
        }

    @property
    def tokenizer(self) -> Tokenizer:
        return self.files.tokenizer()

    def read_ahead(self) -> None:
        """Build the tokenizer on a thread of its own, while others load the model. What is wrong with it is
        said to whoever asks for it."""
        if self.files.has_tokenizer:
            threading.Thread(target=self._build_tokenizer, name="tokenizer", daemon=True).start()

    def _build_tokenizer(self) -> None:
        with suppress(Exception):
            self.files.tokenizer()

    @cached_property
    def masks(self) -> MaskCompiler:
        """Shared with the sampler, so that a constraint checked beforehand is not compiled again."""
        return MaskCompiler(lambda: self.tokenizer.backend, self.vocabulary, self.end_ids)

    def render(self, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
        """A conversation as the model was trained on it, special tokens included.

        Raises:
            CallerError: there is no template, or it refuses the messages.
        """
        if self.chat_template is None:
            raise CallerError(
                f"model {self.name} has no chat template",
                remedy="use prompts instead of messages, or give --chat-template FILE",
            )
        ends = {"bos_token": self.tokenizer.bos_token or "", "eos_token": self.tokenizer.eos_token or ""}
        return chat.render(self.chat_template, messages, **(ends | arguments))

    def check_constraint(self, constraint: Constraint) -> None:
        """Compile it, so that the run finds it ready. Raises CallerError if it cannot be."""
        self.masks.compile(constraint)


__all__ = ["NullModel", "StoredModel", "TextModel"]
