"""A model's files behind one face: a Hugging Face folder or id, one GGUF file, or the alias ``demo``.

Only headers are read here. Nothing that a model folder holds is ever executed.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from shoal.core.errors import OperatorError
from shoal.models import demo
from shoal.models.gguf import GgufHeader, read_gguf_header
from shoal.models.gguf_names import GgufNames
from shoal.models.safetensors import json_object, read_folder
from shoal.models.tensor_info import TensorInfo
from shoal.models.tokenizer import Tokenizer, content, folder_tokenizer, gguf_tokenizer

LoadFormat = Literal["auto", "safetensors", "gguf", "dummy"]
_SAMPLE = 256
"""Bytes of a tensor that its fingerprint reads at each of three places."""
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_WANTED = [
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "*.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "chat_template*",
]
# Texts that end a turn in the families shoal knows; a GGUF file often names only one end id.
_CONTROL = 3
_END_OF_TURN = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>")


class _Added(msgspec.Struct):
    id: int
    content: str


class _Listed(msgspec.Struct):
    """The part of a tokenizer.json that names tokens which are matched whole."""

    added_tokens: list[_Added] = []


class ModelFiles:
    """What one model's files say, weights excepted.

    Attributes:
        name: how the caller named the model.
        path: the folder or the GGUF file.
        format: how the weights are stored; ``dummy`` has none.
        config: the contents of ``config.json``, or what it would say for a GGUF file.
        tensors: every stored tensor by its Hugging Face name; empty for ``dummy``.
        generation_config: as stored, {} if absent; shown to the user, never applied.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        format: Literal["safetensors", "gguf", "dummy"],
        config: dict[str, Any],
        tensors: Mapping[str, TensorInfo],
        header: GgufHeader | None = None,
    ) -> None:
        self.name = name
        self.path = path
        self.format = format
        self.config = config
        self.tensors = tensors
        self._header = header
        self._tokenizer: Tokenizer | None = None
        self._building = threading.Lock()
        self.generation_config = {} if header else _optional_json(path / "generation_config.json")
        self._tokenizer_config = {} if header else _tokenizer_config(path)

    @property
    def stored_dtype(self) -> str:
        """The stored type that holds the most bytes, for example BF16 or Q4_K; the config's for ``dummy``."""
        if not self.tensors:
            stated = str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")
            return {"bfloat16": "BF16", "float16": "F16"}.get(stated, "F32")
        sizes: dict[str, int] = {}
        for info in self.tensors.values():
            sizes[info.stored] = sizes.get(info.stored, 0) + info.size
        return max(sizes, key=lambda stored: sizes[stored])

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, built on the first call; two threads get the same one.

        Raises:
            OperatorError: missing, damaged, or of a kind that shoal does not know.
        """
        with self._building:
            if self._tokenizer is None:
                self._tokenizer = self._build_tokenizer()
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is one, sound or not."""
        if self._header is not None:
            return "tokenizer.ggml.tokens" in self._header.metadata
        return (self.path / "tokenizer.json").is_file()

    def _build_tokenizer(self) -> Tokenizer:
        if self._header is not None:
            return gguf_tokenizer(self._header.metadata, str(self.path))
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise OperatorError(
                "tokenizer.json is missing",
                where=str(self.path),
                remedy="download it, or convert the tokenizer with transformers' save_pretrained",
            )
        return folder_tokenizer(file, self._tokenizer_config)

    @cached_property
    def chat_template(self) -> str | None:
        """The model's own chat template (Jinja), or None."""
        if self._header is not None:
            template = self._header.metadata.get("tokenizer.chat_template")
            return template if isinstance(template, str) else None
        file = self.path / "chat_template.jinja"
        if file.is_file():
            return _text(file)
        template = self._tokenizer_config.get("chat_template")
        if template is None:
            template = _optional_json(self.path / "chat_template.json").get("chat_template")
        if isinstance(template, list):
            named = {e.get("name"): e.get("template") for e in template if isinstance(e, dict)}
            template = named.get("default")
        return template if isinstance(template, str) else None

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, ascending."""
        if self._header is not None:
            return self._gguf_end_ids(self._header)
        stated = _ids(self.generation_config.get("eos_token_id"), self.path)
        if not stated:
            text = self.config.get("text_config")
            nested = text.get("eos_token_id") if isinstance(text, dict) else None
            stated = _ids(self.config.get("eos_token_id", nested), self.path)
        if self.has_tokenizer:
            end = self._tokenizer_end_id()
            stated = stated if end is None else [*stated, end]
        return tuple(sorted(set(stated)))

    def _tokenizer_end_id(self) -> int | None:
        """The id of the tokenizer's own end token; it is built only if its file does not list that."""
        end = content(self._tokenizer_config.get("eos_token"))
        file = self.path / "tokenizer.json"
        if end is None:
            return None
        try:
            listed = msgspec.json.decode(file.read_bytes(), type=_Listed).added_tokens
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            listed = []
        found = next((token.id for token in listed if token.content == end), None)
        return self.tokenizer().eos_id if found is None else found

    def _gguf_end_ids(self, header: GgufHeader) -> tuple[int, ...]:
        found: list[int] = []
        for name in ("eos", "eot", "eom"):
            found += _ids(header.metadata.get(f"tokenizer.ggml.{name}_token_id"), self.path)
        # Looked up in the file itself: building a large tokenizer takes longer than all else before loading.
        tokens, types = (header.metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
        if isinstance(tokens, list) and isinstance(types, np.ndarray) and len(types) == len(tokens):
            control = np.flatnonzero(types == _CONTROL).tolist()
            found += [number for number in control if tokens[number] in _END_OF_TURN]
        return tuple(sorted(set(found)))

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        digest.update(self.format.encode())
        digest.update(msgspec.json.encode(self.config, order="sorted"))
        heads = {info.file: info.offset for info in self.tensors.values()}
        for info in self.tensors.values():
            heads[info.file] = min(heads[info.file], info.offset)
        for file, head in sorted(heads.items()):
            digest.update(f"\0{file.name} {file.stat().st_size} {head}\0".encode())
            with file.open("rb") as opened:
                digest.update(opened.read(head))
                for info in (info for info in self.tensors.values() if info.file == file):
                    for place in (0, info.size // 2, max(0, info.size - _SAMPLE)):
                        opened.seek(info.offset + place)
                        digest.update(opened.read(min(_SAMPLE, info.size - place)))
        if self._header is None:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                file = self.path / name
                digest.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
        digest.update((self.chat_template or "").encode())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """64 hex digits that change with the config, the tokenizer, the headers, the files' sizes, or what
        stands at three places of each tensor, which any further training changes.

        Times are not part of it: a copy has the same fingerprint.
        """
        return self._fingerprint


def open_model(spec: str, load_format: LoadFormat = "auto") -> ModelFiles:
    """The files of the model ``spec``: a folder, a .gguf file, ``demo``, or ``org/name[@revision]``.

    Raises:
        OperatorError: not found, damaged, pickled, or of a kind that shoal does not read.
    """
    if load_format not in get_args(LoadFormat):
        raise OperatorError(
            f"load format {load_format!r} is unknown", remedy=f"use one of {', '.join(get_args(LoadFormat))}"
        )
    path = _locate(spec)
    return _open_folder(spec, path, load_format) if path.is_dir() else _open_file(spec, path, load_format)


def _open_file(spec: str, path: Path, load_format: LoadFormat) -> ModelFiles:
    if path.suffix in _PICKLES:
        raise _pickled(path)
    if load_format == "dummy":
        header = read_gguf_header(path)
        return ModelFiles(spec, path, "dummy", GgufNames(header).config, {}, header)
    if load_format == "safetensors":
        raise OperatorError(
            "one file, not a folder", where=str(path), remedy="name the folder, or use --load-format gguf"
        )
    header = read_gguf_header(path)
    names = GgufNames(header)
    return ModelFiles(spec, path, "gguf", names.config, names.tensors, header)


def _locate(spec: str) -> Path:
    if not spec or "\0" in spec:
        raise OperatorError("no model named", remedy="name a folder, a .gguf file, demo, or org/name")
    path = Path(spec).expanduser()
    try:
        if path.is_dir() or path.is_file():
            return path
    except OSError:
        pass
    if spec == "demo":
        return demo.demo_model()
    name, _, revision = spec.partition("@")
    parts = name.split("/")
    local = spec.startswith((".", "/", "~")) or spec.endswith(".gguf")
    if local or len(parts) != 2 or not all(parts):
        raise OperatorError(
            "no such file or folder", where=spec, remedy="name a folder, a .gguf file, demo, or org/name"
        )
    return _download(name, revision or None)


def _download(name: str, revision: str | None) -> Path:
    # Slow to import, and needed by nobody who has the files.
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=_WANTED,
                ignore_patterns=["consolidated*"],
            )
        )
    except Exception as error:  # the library lets its HTTP client's own errors through
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        remedy = (
            "unset HF_HUB_OFFLINE, or name a local folder"
            if offline
            else "check the name, the network and HF_TOKEN, or name a local folder"
        )
        line = " ".join(str(error).split())[:200]
        raise OperatorError(f"cannot be downloaded: {line}", where=name, remedy=remedy) from None


def _open_folder(spec: str, folder: Path, load_format: LoadFormat) -> ModelFiles:
    """Safetensors where there are some; else the folder's one GGUF file."""
    has_config = (folder / "config.json").is_file()
    if load_format == "dummy" and has_config:
        return ModelFiles(spec, folder, "dummy", json_object(folder / "config.json"), {})
    if load_format != "gguf" and has_config and (tensors := read_folder(folder)):
        return ModelFiles(spec, folder, "safetensors", json_object(folder / "config.json"), tensors)
    files = sorted(folder.glob("*.gguf")) if load_format in ("auto", "gguf") else []
    if len(files) == 1:
        return _open_file(spec, files[0], load_format)
    if files:
        raise OperatorError(f"{len(files)} GGUF files", where=str(folder), remedy="name the .gguf file")
    pickles = sorted(file for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise _pickled(pickles[0])
    wanted = "*.gguf" if load_format == "gguf" else "*.safetensors" if has_config else "config.json"
    raise OperatorError(f"{wanted} is missing", where=str(folder), remedy="download the whole model")


def _pickled(path: Path) -> OperatorError:
    return OperatorError(
        "a pickle file can run code, so shoal never opens one",
        where=str(path),
        remedy="convert the weights to safetensors",
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return json_object(path) if path.is_file() else {}


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; where it lists no added tokens, the older special_tokens_map.json wins."""
    config = _optional_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    return config | _optional_json(folder / "special_tokens_map.json")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"cannot be read: {error}", where=str(path), remedy="download it again") from None


def _ids(value: Any, where: Path) -> list[int]:
    """One id, a list of ids, or nothing."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if len(listed) > 1024 or not all(type(number) is int and 0 <= number < 2**31 for number in listed):
        raise OperatorError(
            f"eos_token_id is {str(value)[:60]}", where=str(where), remedy="download the model again"
        )
    return listed
