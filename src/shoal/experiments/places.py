"""Engines over layout ``slots``: on simulated time with steps of equal length, and over a Llama here."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec

from shoal.core.config import NULL_MODEL, EngineConfig
from shoal.core.cost import StepShape
from shoal.core.policy import Admission
from shoal.engine import machine
from shoal.engine.build import assemble, prepare
from shoal.engine.engine import Engine
from shoal.engine.model import TextModel
from shoal.engine.null_model import NullModel
from shoal.engine.priced import JumpingClock, PricedExecutor
from shoal.experiments.claims import Trial
from shoal.experiments.fusion import Watched, WholeWindow
from shoal.experiments.serving import Noting, WallClock
from shoal.memory.flover import Flover

REQUESTS, TOKENS, PROMPT = 32, 512, 8
STEP = 5.8 / 512
"""Seconds: what the paper's model takes alone, by token."""
VOCABULARY = 4096
SMALL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
LARGE = SMALL | {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 13,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 2 * VOCABULARY,
}
"""88 million weights: far more than a processor's cache holds."""


class Constant:
    """Every step takes as long as every other."""

    def step(self, shape: StepShape) -> float:
        return STEP

    def rows(self, count: int) -> float:
        return STEP


def simulated(
    policy: Admission, *, sequences: int = REQUESTS, arithmetic: bool = False, watch: bool = False
) -> tuple[Engine, JumpingClock]:
    """An engine whose steps take ``STEP`` seconds; with ``arithmetic`` tokens depend on all before them, with
    ``watch`` its executor is ``Watched``."""
    longest = PROMPT + TOKENS
    clock = JumpingClock()
    priced = PricedExecutor(Constant(), clock, sequences, longest, VOCABULARY, arithmetic=arithmetic, token=1)
    executor = Watched(priced) if watch else priced
    config = EngineConfig(model=NULL_MODEL, layout="slots", admission=policy, max_num_seqs=sequences)
    engine = assemble(config, executor, NullModel(longest))
    if isinstance(executor, Watched):
        executor.memory = engine.memory
    return engine, clock


class Real:
    """A Llama with random weights, float32, on this machine; every engine over it has its own buffer.

    Attributes:
        parameters: of the model.
    """

    def __init__(self, folder: Path, shape: dict[str, Any], trial: Trial) -> None:
        machine.calm_threads()
        from shoal.engine.tensors.start import model_executor

        (folder / "config.json").write_text(json.dumps(shape))
        self._config = EngineConfig(
            model=str(folder),
            load_format="dummy",
            dtype="float32",
            # Whether sequences lie side by side matters to operators that read a batch as one array.
            kernels="plain",
            layout="slots",
            max_model_len=256,
            max_num_seqs=REQUESTS,
            # Handing a small product to a second thread costs more than the product.
            threads=1 if shape is SMALL else None,
            record_margins=shape is SMALL,
            seed=trial.seed % 2**32,
        )
        prepared = prepare(self._config)
        assert prepared.architecture is not None
        self.parameters = prepared.architecture.parameter_count
        self._text: TextModel = prepared.model
        self._model = model_executor(prepared).model

    def engine(
        self, policy: Flover, *, sequences: int = REQUESTS, whole: bool = False
    ) -> tuple[Engine, WallClock]:
        """With ``whole`` holes in the window are computed like everything else."""
        from shoal.engine.tensors.model_executor import ModelExecutor
        from shoal.engine.tensors.sampler import Sampler

        plain = ModelExecutor(
            self._model,
            Sampler(self._text.vocabulary),
            sequences,
            self._text.max_model_len,
            time.perf_counter,
            record_margins=self._config.record_margins,
        )
        executor = WholeWindow(plain) if whole else Noting(plain)
        config = msgspec.structs.replace(self._config, policy=policy, max_num_seqs=sequences)
        engine = assemble(config, executor, self._text)
        if isinstance(executor, WholeWindow):
            executor.memory = engine.memory
        return engine, WallClock()
