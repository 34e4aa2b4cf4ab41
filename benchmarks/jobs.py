"""The five jobs that shoal's speed is judged by, and the least work that each of them is.

Token ids are drawn uniformly with a seeded generator, answers are greedy and never end early, so the
number of tokens is the same for whoever runs them. ``docs/benchmarks.md`` describes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]

HIDDEN, INNER, LAYERS, VOCABULARY = 576, 1536, 30, 49152
HEADS, KV_HEADS, HEAD = 9, 3, 64
LLAMA_135M = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
"""``config.json`` of ``llama135m``: the weights are random, its shapes are those of a 135M model."""


@dataclass(frozen=True)
class Job:
    """Requests that arrive at once.

    Attributes:
        prompts: token ids, one array a request.
        outputs: tokens to produce, one number a request.
        groups, common: the prompts fall into so many groups, which share their first ``common`` tokens.
        kv_tokens: size of the KV pool in tokens, None where memory is not the point.
    """

    name: str
    prompts: list[Ids]
    outputs: list[int]
    groups: int = 0
    common: int = 0
    kv_tokens: int | None = None

    @property
    def side_by_side(self) -> int:
        """How many can decode at once at best: all, or as many whole groups as the pool holds."""
        if self.kv_tokens is None:
            return len(self.prompts)
        members = len(self.prompts) // self.groups
        own = max(len(prompt) for prompt in self.prompts) - self.common + max(self.outputs)
        return max(1, self.kv_tokens // (self.common + members * own)) * members


@dataclass(frozen=True)
class Work:
    """The least work of a job: rows that cannot be avoided, and what their attention reads.

    Attributes:
        prompt_rows: prompt tokens, each distinct prefix once.
        decode_rows: produced tokens that are fed back (all but the last of each answer).
        emitted: produced tokens, each of which takes one product with the vocabulary.
        pairs: (row, visible position) pairs of attention.
    """

    prompt_rows: int
    decode_rows: int
    emitted: int
    pairs: int


def least_work(job: Job) -> Work:
    prompt = job.groups * job.common
    pairs = job.groups * _triangle(0, job.common)
    for ids, output in zip(job.prompts, job.outputs, strict=True):
        prompt += len(ids) - job.common
        pairs += _triangle(job.common, len(ids) + output - 1)
    return Work(prompt, sum(job.outputs) - len(job.outputs), sum(job.outputs), pairs)


def _triangle(first: int, last: int) -> int:
    """Positions that the causal rows first .. last - 1 see: position p sees p + 1."""
    return (last * (last + 1) - first * (first + 1)) // 2


def _grouped(
    rng: np.random.Generator, groups: int, members: int, common: int, own: tuple[int, int]
) -> list[Ids]:
    prompts = []
    for _ in range(groups):
        prefix = _draw(rng, common)
        prompts += [np.concatenate([prefix, _draw(rng, _between(rng, own))]) for _ in range(members)]
    return [prompts[i] for i in rng.permutation(len(prompts))]


def _draw(rng: np.random.Generator, count: int) -> Ids:
    return rng.integers(0, VOCABULARY, count, dtype=np.int32)


def _between(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


def shared(rng: np.random.Generator, quick: bool) -> Job:
    groups, members = (2, 8) if quick else (8, 24)
    prompts = _grouped(rng, groups, members, 768, (32, 64))
    return Job("shared", prompts, [8 if quick else 32] * len(prompts), groups, 768)


def mixed(rng: np.random.Generator, quick: bool) -> Job:
    count = 8 if quick else 64
    prompts = [_draw(rng, _between(rng, (64, 512))) for _ in range(count)]
    return Job("mixed", prompts, [_between(rng, (4, 24) if quick else (16, 96)) for _ in range(count)])


def decode(rng: np.random.Generator, quick: bool) -> Job:
    prompts = [_draw(rng, 32) for _ in range(32)]
    return Job("decode", prompts, [16 if quick else 128] * 32)


def single(rng: np.random.Generator, quick: bool) -> Job:
    return Job("single", [_draw(rng, 128)], [16 if quick else 64])


def forest(rng: np.random.Generator, quick: bool) -> Job:
    """The pool holds a fraction of the groups, so that the order of the requests decides."""
    groups, members, pool = (4, 4, 1024) if quick else (32, 12, 8192)
    prompts = _grouped(rng, groups, members, 512, (16, 48))
    return Job("forest", prompts, [4 if quick else 16] * len(prompts), groups, 512, pool)


JOBS: dict[str, Callable[[np.random.Generator, bool], Job]] = {
    "shared": shared,
    "mixed": mixed,
    "decode": decode,
    "single": single,
    "forest": forest,
}
