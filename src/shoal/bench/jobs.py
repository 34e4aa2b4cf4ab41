"""The five jobs that shoal's speed is judged by, and the model of random weights that they run on.

Token ids are drawn uniformly with a seeded generator, answers are greedy and never end early, so the
number of tokens is the same for whoever runs them. ``docs/benchmarks.md`` describes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]

LLAMA_135M = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
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


def _grouped(
    rng: np.random.Generator,
    vocabulary: int,
    groups: int,
    members: int,
    common: int,
    own: tuple[int, int],
) -> list[Ids]:
    prompts = []
    for _ in range(groups):
        prefix = _draw(rng, vocabulary, common)
        prompts += [
            np.concatenate([prefix, _draw(rng, vocabulary, _between(rng, own))]) for _ in range(members)
        ]
    return [prompts[i] for i in rng.permutation(len(prompts))]


def _draw(rng: np.random.Generator, vocabulary: int, count: int) -> Ids:
    return rng.integers(0, vocabulary, count, dtype=np.int32)


def _between(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


def shared(rng: np.random.Generator, vocabulary: int, quick: bool) -> Job:
    groups, members = (2, 8) if quick else (8, 24)
    prompts = _grouped(rng, vocabulary, groups, members, 768, (32, 64))
    return Job("shared", prompts, [8 if quick else 32] * len(prompts), groups, 768)


def mixed(rng: np.random.Generator, vocabulary: int, quick: bool) -> Job:
    count = 8 if quick else 64
    prompts = [_draw(rng, vocabulary, _between(rng, (64, 512))) for _ in range(count)]
    return Job("mixed", prompts, [_between(rng, (4, 24) if quick else (16, 96)) for _ in range(count)])


def decode(rng: np.random.Generator, vocabulary: int, quick: bool) -> Job:
    prompts = [_draw(rng, vocabulary, 32) for _ in range(32)]
    return Job("decode", prompts, [16 if quick else 128] * 32)


def single(rng: np.random.Generator, vocabulary: int, quick: bool) -> Job:
    return Job("single", [_draw(rng, vocabulary, 128)], [16 if quick else 64])


def forest(rng: np.random.Generator, vocabulary: int, quick: bool) -> Job:
    """The pool holds a fraction of the groups, so that the order of the requests decides."""
    groups, members, pool = (4, 4, 1024) if quick else (32, 12, 8192)
    prompts = _grouped(rng, vocabulary, groups, members, 512, (16, 48))
    return Job("forest", prompts, [4 if quick else 16] * len(prompts), groups, 512, pool)


JOBS: dict[str, Callable[[np.random.Generator, int, bool], Job]] = {
    "shared": shared,
    "mixed": mixed,
    "decode": decode,
    "single": single,
    "forest": forest,
}
