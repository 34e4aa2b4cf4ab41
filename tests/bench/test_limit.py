"""The limit of a job, from rates that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.bench.jobs import JOBS, LLAMA_135M
from shoal.bench.limit import Heads, Shapes, layer_shapes, limit_of
from shoal.bench.work import least_work
from shoal.models.registry import read_architecture

LAYER = 960 * 576 + 576 * 576 + 3072 * 576 + 576 * 1536
TABLE = 49152 * 576


class Rates:
    """10 GFLOP/s at one row, 100 at many but 120 at 512; attention half of that; 30 GB/s."""

    read = 30e9

    def __init__(self) -> None:
        self.keys: list[int] = []

    def product(self, shapes: Shapes, rows: int) -> float:
        return {1: 10e9, 512: 120e9}.get(rows, 100e9)

    def attention(self, heads: Heads, keys: int) -> float:
        assert heads == Heads(9, 3, 64)
        self.keys.append(keys)
        return 50e9


def parts(name: str, item: int):
    architecture = read_architecture(LLAMA_135M)
    job = JOBS[name](np.random.default_rng(0), 49152, False)
    work = least_work(job.prompts, job.outputs)
    rates = Rates()
    limit = limit_of(work, job.side_by_side, architecture, rates, item)
    assert limit.seconds == pytest.approx(sum(part.seconds for part in limit.parts))
    return {part.name: part for part in limit.parts}, work, rates


def test_the_layers_of_the_model_are_its_products() -> None:
    shapes = layer_shapes(read_architecture(LLAMA_135M))
    assert shapes == [((960, 576), (576, 576), (3072, 576), (576, 1536))] * 30


def test_prompts_go_at_the_best_rate_of_many_rows_and_decoding_at_its_own() -> None:
    found, work, _ = parts("decode", 2)
    assert found["prompt"].seconds == pytest.approx(2 * 30 * LAYER * work.prompt_rows / 120e9)
    assert found["decode"].seconds == pytest.approx(2 * 30 * LAYER * work.decode_rows / 100e9)
    assert found["vocabulary"].seconds == pytest.approx(2 * TABLE * 32 * 128 / 100e9)


@pytest.mark.parametrize("item", [2, 4])
def test_one_row_is_as_fast_as_its_weights_are_read(item: int) -> None:
    found, _, _ = parts("single", item)
    assert found["decode"].seconds == pytest.approx(63 * 30 * LAYER * item / 30e9)
    assert found["vocabulary"].seconds == pytest.approx(64 * TABLE * item / 30e9)


def test_attention_is_every_pair_once_at_the_rate_of_its_length() -> None:
    found, work, rates = parts("shared", 2)
    pairs = work.pairs()
    assert found["attention"].seconds == pytest.approx(4 * 30 * 9 * 64 * pairs / 50e9)
    assert rates.keys == [-(-(pairs // (work.prompt_rows + work.decode_rows)) // 64) * 64]


def test_windows_and_all_positions_are_priced_apart() -> None:
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 6,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "sliding_window": 100,
    }
    architecture = read_architecture(config)
    windows = [layer.attention.window for layer in architecture.layers]
    assert set(windows) == {None, 100}
    work = least_work([np.arange(1000, dtype=np.int32)], [2])
    limit = limit_of(work, 1, architecture, Rates(), 2)
    wanted = sum(4 * 9 * 64 * work.pairs(window) for window in windows)
    assert limit.parts[-1].operations == wanted
