"""Token ids equal transformers', from GGUF metadata and from tokenizer.json, and so do texts back."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer
from transformers.integrations.gguf import convert_gguf_tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING

from shoal.core.errors import CallerError, OperatorError
from shoal.models.files import open_model
from shoal.models.gguf import read_gguf_header
from shoal.models.gguf_tokenizer import SPLITS, byte_spelling
from shoal.models.tokenizer import Tokenizer as OurTokenizer
from shoal.models.tokenizer import gguf_tokenizer
from tests.models.build import llama_metadata
from tests.models.texts import WORDS, varied
from tests.sizes import size


def by_transformers(metadata: dict[str, Any]) -> Tokenizer:
    """What transformers makes of GGUF metadata, without the minutes its config reader takes."""
    names = GGUF_TOKENIZER_MAPPING["tokenizer"]
    read = {
        name: metadata[f"tokenizer.{key}"] for key, name in names.items() if f"tokenizer.{key}" in metadata
    }
    read = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in read.items()}
    return convert_gguf_tokenizer(metadata["general.architecture"], read)[0]


def check_equal(ours: OurTokenizer, theirs: Tokenizer, texts: list[str]) -> None:
    expected = [encoding.ids for encoding in theirs.encode_batch(texts, add_special_tokens=False)]
    found = ours.encode_batch(texts, add_special=False)
    for text, ids, wanted in zip(texts, found, expected):
        assert ids.dtype == np.int32
        assert ids.tolist() == wanted, text
        for skip in (True, False):
            assert ours.decode(ids, skip_special=skip) == theirs.decode(wanted, skip_special_tokens=skip)


@pytest.mark.slow
def test_the_demo_model_equals_transformers() -> None:
    files = open_model("demo")
    ours = files.tokenizer()
    if size("small", "long") == "long":
        loaded = AutoTokenizer.from_pretrained(files.path.parent, gguf_file=files.path.name)
        theirs = loaded.backend_tokenizer
        texts = varied(200, seed=3)
        assert [ours.encode(text).tolist() for text in texts] == loaded(texts)["input_ids"]
    else:
        theirs = by_transformers(read_gguf_header(files.path).metadata)
    check_equal(ours, theirs, varied(size(500, 5000), seed=1))
    assert ours.vocabulary_size == 262144
    assert ours.add_bos
    assert ours.encode("Hello").tolist() == [2, 9259]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_small_sentencepiece_vocabularies(architecture: str) -> None:
    metadata = llama_metadata(**{"general.architecture": architecture})
    if architecture == "gemma3":
        # The class transformers uses brings these four along.
        metadata["tokenizer.ggml.token_type"][-2:] = 3
        names = {"<s>": "<bos>", "</s>": "<eos>", "<tool>": "<mask>", "<|im_end|>": "<pad>"}
        metadata["tokenizer.ggml.tokens"] = [
            names.get(text, text) for text in metadata["tokenizer.ggml.tokens"]
        ]
        metadata["tokenizer.ggml.tokens"] = [
            " " * len(text) if set(text) == {"▁"} and len(text) > 1 else text
            for text in metadata["tokenizer.ggml.tokens"]
        ]
    check_equal(gguf_tokenizer(metadata, "m.gguf"), by_transformers(metadata), varied(400, seed=2))


def byte_level_metadata(pre: str) -> dict[str, Any]:
    """A byte-level vocabulary trained on a few words, as GGUF metadata has it."""
    model = Tokenizer(BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.train_from_iterator([" ".join(WORDS)] * 3, vocab_size_trainer())
    state = json.loads(model.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    types = [1] * len(tokens) + [3, 3, 4]
    tokens += ["<|endoftext|>", "<|im_end|>", "<think>"]
    return {
        "general.architecture": "qwen2",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["merges"]],
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }


def vocab_size_trainer() -> Any:
    from tokenizers.trainers import BpeTrainer

    return BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )


@pytest.mark.parametrize("pre", sorted(SPLITS))
def test_byte_level_vocabularies(pre: str) -> None:
    metadata = byte_level_metadata(pre)
    ours = gguf_tokenizer(metadata, "m.gguf")
    theirs = by_transformers(metadata)
    if pre == "smollm":
        # transformers does not know the name; this is what the model's own tokenizer.json says.
        digits = pre_tokenizers.Digits(individual_digits=True)
        theirs.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    check_equal(ours, theirs, varied(400, seed=4))
    assert not ours.add_bos
    assert ours.eos_token == "<|im_end|>"


def test_byte_spelling_is_the_one_of_the_library() -> None:
    assert sorted(byte_spelling()) == sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "rwkv"),
        ({"tokenizer.ggml.tokens": None}, "no vocabulary"),
        ({"tokenizer.ggml.tokens": []}, "no vocabulary"),
        ({"tokenizer.ggml.scores": np.zeros(3, np.float32)}, "tokenizer.ggml.scores"),
        ({"tokenizer.ggml.scores": None}, "neither scores nor merges"),
        ({"tokenizer.ggml.token_type": np.zeros(3, np.int32)}, "token_type"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "bos_token_id"),
        ({"tokenizer.ggml.merges": ["a b c", "q"]}, "merge"),
    ],
)
def test_vocabularies_that_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        gguf_tokenizer(llama_metadata(**changes), "m.gguf")


def test_an_unknown_pre_tokenizer_is_refused_by_name() -> None:
    metadata = byte_level_metadata("default") | {"tokenizer.ggml.pre": "superbpe"}
    with pytest.raises(OperatorError, match="superbpe"):
        gguf_tokenizer(metadata, "m.gguf")


def test_bos_and_eos_rules_from_metadata() -> None:
    ids = gguf_tokenizer(llama_metadata(), "m").encode("the")
    assert ids[0] == 1
    no = gguf_tokenizer(llama_metadata(**{"tokenizer.ggml.add_bos_token": False}), "m")
    assert not no.add_bos
    assert no.encode("the").tolist() == ids[1:].tolist()
    both = gguf_tokenizer(llama_metadata(**{"tokenizer.ggml.add_eos_token": True}), "m").encode("the")
    assert both.tolist() == [*ids.tolist(), 2]
    assert (
        both.tolist()[1:-1] == gguf_tokenizer(llama_metadata(), "m").encode("the", add_special=False).tolist()
    )


def folder(path: Path, config: dict[str, Any] | None) -> Path:
    """A folder with a Llama-like tokenizer.json whose own template adds BOS."""
    backend = by_transformers(llama_metadata())
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.enable_truncation(4)
    backend.enable_padding(length=12)
    backend.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


NAMED = {
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
    "unk_token": "<unk>",
}


@pytest.mark.parametrize(
    "config",
    [
        NAMED,
        NAMED | {"add_bos_token": False},
        NAMED | {"add_bos_token": True, "add_eos_token": True},
        {"eos_token": "</s>", "bos_token": None, "add_bos_token": True},
        NAMED | {"pad_token": "▁and"},
        NAMED
        | {
            "added_tokens_decoder": {
                "1": {"content": "<s>", "special": True},
                "2": {"content": "</s>", "special": True},
                "270": {"content": "▁and", "special": False, "rstrip": True},
            }
        },
    ],
)
def test_folders_equal_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    stated = config | {"tokenizer_class": "PreTrainedTokenizerFast"}
    ours = open_model(str(folder(tmp_path, stated)), "dummy").tokenizer()
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = varied(300, seed=5)
    for text, ids in zip(texts, ours.encode_batch(texts)):
        assert ids.tolist() == theirs(text)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.bos_token == theirs.bos_token
    assert ours.eos_token == theirs.eos_token


def test_ids_do_not_depend_on_padding_or_truncation_in_the_file(tmp_path: Path) -> None:
    ours = open_model(str(folder(tmp_path, None)), "dummy").tokenizer()
    assert len(ours.encode("the king and the thing and the king")) > 4
    assert len(ours.encode("a")) < 12


def test_texts_that_no_encoding_can_carry() -> None:
    ours = gguf_tokenizer(llama_metadata(), "m")
    for text in ("\ud800", "a\udfffb"):
        with pytest.raises(CallerError, match="surrogates"):
            ours.encode(text)
        with pytest.raises(CallerError, match="surrogates"):
            ours.encode_batch(["fine", text])
    assert ours.decode([10**6]) == ""


def test_a_panic_in_the_library_is_a_bad_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it: not an Exception."""

    class Breaking:
        def encode(self, text: str, add_special_tokens: bool) -> Any:
            if "x" in text:
                raise PanicException
            return types.SimpleNamespace(ids=[1])

        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
            raise PanicException

    ours = gguf_tokenizer(llama_metadata(), "m")
    monkeypatch.setattr(ours, "backend", Breaking())
    assert [ids.tolist() for ids in ours.encode_batch(["a", "b"])] == [[1], [1]]
    for call in (lambda: ours.encode("ax"), lambda: ours.encode_batch(["a", "ax"])):
        with pytest.raises(CallerError, match="breaks on 'ax'"):
            call()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": "1.0"}', "\x00" * 100, '{"model": {"type": "BPE"}}', "[" * 100_000]
)
def test_a_damaged_tokenizer_json_is_one_line(tmp_path: Path, text: str) -> None:
    folder(tmp_path, None)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(OperatorError) as caught:
        open_model(str(tmp_path), "dummy").tokenizer()
    assert "tokenizer.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gemma_like_pipeline_from_a_file(tmp_path: Path) -> None:
    backend = Tokenizer(
        BPE(vocab={"<bos>": 0, "a": 1, "▁": 2, "aa": 3}, merges=[("a", "a")], unk_token="<bos>")
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    backend.add_special_tokens([AddedToken("<bos>", special=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    ours = open_model(str(tmp_path), "dummy").tokenizer()
    assert ours.encode("aa a<bos>").tolist() == [3, 2, 1, 0]
    assert ours.decode(np.array([0, 3, 2, 1])) == "aa a"
    assert ours.decode([0, 3], skip_special=False) == "<bos>aa"
