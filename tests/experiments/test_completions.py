"""Answers to one prompt through the engine: what their steps read is judged by each row's positions."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.engine import machine
from shoal.experiments.completions import Reading, Reads, Setting
from shoal.experiments.places import SMALL
from shoal.experiments.serving import Arrival, WallClock, serve


def test_a_step_is_wrong_if_it_reads_anything_else():
    position = np.array([130, 200])
    reads = Reads([position, position, position], [128 + 3 + 73, 131 + 201, 128 + 3])
    assert reads.wrong(129) == 2
    assert reads.wrong(20) == 2


@pytest.mark.skipif(not machine.compiled(), reason="the compiled kernels were not built")
def test_steps_of_an_engine_read_a_prompt_once_where_sharing_is_seen(tmp_path):
    setting = Setting(SMALL, "float32", 140, 3, 4)
    wrong = []
    for share in (True, False):
        engine = setting.engine(tmp_path, 0, share=share)
        served = serve(engine, WallClock(), map(Arrival, setting.requests(0)))
        assert [len(each) for each in served.tokens.values()] == [4, 4, 4]
        assert isinstance(engine.executor, Reading)
        wrong.append((engine.executor.reads.wrong(140), len(engine.executor.reads.read)))
    assert wrong[0][0] == 0
    assert wrong[1][0] == wrong[1][1] >= 3
