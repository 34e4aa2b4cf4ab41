"""A stored calibration is used where it holds, and nowhere else."""

from __future__ import annotations

import json

import msgspec
import pytest

from shoal.core.config import EngineConfig
from shoal.core.cost import CostTable, StepShape
from shoal.core.errors import OperatorError
from shoal.engine import calibration, costs
from shoal.engine.build import prepare, start, step_rows
from shoal.engine.calibration import load, path_of, save
from shoal.engine.costs import NULL_COST, WORTH, cost_for, guess
from tests.engine.test_build import CONFIG

TABLE = CostTable(row_counts=(1, 2), row_seconds=(0.25, 0.5), emit_counts=(1,), emit_seconds=(0.01,), run=0.1)
STEPS = [(StepShape(1, 1, 0, 1, 1), 0.25), (StepShape(2, 1, 0, 2, 3), 0.5)]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.delenv("SHOAL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "shoal" / "calibration"


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    return {"model": str(tmp_path / "model"), "load_format": "dummy", "kv_memory": 4 << 20, "threads": 1}


def test_it_is_found_by_whoever_builds_the_same_engine(model, caches):
    prepared = prepare(EngineConfig(**model))
    assert prepared.cost is None
    assert "steps not measured yet" in prepared.description
    path = save(prepared.identity, "m", TABLE, STEPS, 1.5)
    assert path.parent == caches
    assert [file.name for file in caches.iterdir()] == [path.name], "no half-written file stays"
    again = prepare(EngineConfig(**model))
    assert again.cost == TABLE
    assert "steps measured 2" in again.description
    stored, trouble = load(prepared.identity)
    assert (stored.steps, stored.seconds, trouble) == (STEPS, 1.5, None)


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 2},
        {"dtype": "bfloat16"},
        {"page_size": 8},
        {"layout": "slots", "max_model_len": 64},
    ],
)
def test_it_is_measured_anew_when_the_engine_changes(model, change):
    identity = prepare(EngineConfig(**model)).identity
    save(identity, "m", TABLE, STEPS, 1.0)
    other = prepare(EngineConfig(**(model | change)))
    assert other.identity.key != identity.key
    assert other.cost is None


@pytest.mark.parametrize("what", ["__version__", "machine.processor", "machine.isa", "_version"])
def test_it_is_measured_anew_when_the_machine_or_shoal_changes(model, monkeypatch, what):
    save(prepare(EngineConfig(**model)).identity, "m", TABLE, STEPS, 1.0)
    new = "9.9" if what == "__version__" else lambda *_: "another"
    monkeypatch.setattr(f"shoal.engine.calibration.{what}", new)
    assert prepare(EngineConfig(**model)).cost is None


def test_another_architecture_is_another_table_and_other_weights_are_not(model, tmp_path):
    first = prepare(EngineConfig(**model)).identity
    assert prepare(EngineConfig(**model, seed=5)).identity == first
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 3}))
    assert prepare(EngineConfig(**model)).identity != first


def foreign(path):
    found = json.loads(path.read_bytes())
    found["identity"]["threads"] += 1
    return json.dumps(found).encode()


def later(path):
    return json.dumps(json.loads(path.read_bytes()) | {"format": 2}).encode()


def falling(path):
    found = json.loads(path.read_bytes())
    found["table"]["row_seconds"] = [2.0, 1.0]
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: b"",
        lambda path: path.read_bytes()[:-20],
        lambda path: b"\xff\xfe{}",
        lambda path: b'{"format": 1}',
        foreign,
        later,
        falling,
    ],
)
def test_a_file_that_cannot_be_used_is_said_and_measured_anew(model, damage):
    identity = prepare(EngineConfig(**model)).identity
    path = save(identity, "m", TABLE, STEPS, 1.0)
    path.write_bytes(damage(path))
    prepared = prepare(EngineConfig(**model))
    assert prepared.cost is None
    assert "measured anew" in prepared.description
    assert str(path) in prepared.description


def test_a_folder_that_cannot_be_written_is_named(model, caches):
    caches.parent.mkdir(parents=True)
    caches.write_text("a file in the way")
    with pytest.raises(OperatorError, match="cannot be kept"):
        save(prepare(EngineConfig(**model)).identity, "m", TABLE, STEPS, 1.0)


def never(prepared):
    raise AssertionError("nothing is to be loaded")


def test_the_null_model_is_never_measured():
    prepared = prepare(EngineConfig(model="null"))
    assert cost_for(prepared, never, None).cost is NULL_COST
    assert prepared.cost is None, "its policies decide as if nothing was known"


def test_what_is_known_is_not_measured_again(model):
    save(prepare(EngineConfig(**model)).identity, "m", TABLE, STEPS, 1.0)
    assert cost_for(prepare(EngineConfig(**model)), never, None).cost == TABLE


def test_a_short_job_is_not_worth_measuring_and_a_long_one_is(model):
    prepared = prepare(EngineConfig(**model))
    multiplied = prepared.architecture.parameter_count - CONFIG["vocab_size"] * CONFIG["hidden_size"]
    tokens = round(WORTH * 30e9 / 2 / multiplied)
    assert guess(prepared, tokens) == pytest.approx(WORTH, rel=1e-3)
    assert cost_for(prepared, never, tokens - 100).cost is None
    said = []
    found = cost_for(prepared, start, tokens + 100, say=said.append, budget=0.5)
    assert len(said) == 1
    assert "once for this model" in said[0]
    assert found.cost == found.prepared.cost == prepare(EngineConfig(**model)).cost
    assert "steps measured just now" in found.prepared.description
    assert found.engine.idle
    found.engine.check()


def test_a_long_job_about_to_run_is_told_at_the_speed_of_the_moment(model):
    save(prepare(EngineConfig(**model)).identity, "m", TABLE, STEPS, 1.0)
    prepared = prepare(EngineConfig(**model))
    assert cost_for(prepared, never, 10, about_to_run=True).cost == TABLE
    found = cost_for(prepared, start, 10**9, about_to_run=True)
    assert 0.0 < found.cost.rows(2) < TABLE.rows(2), "the table is far too slow for so small a model"
    assert found.cost.rows(2) / found.cost.rows(1) == pytest.approx(TABLE.rows(2) / TABLE.rows(1))
    assert found.prepared is prepared
    assert found.engine.idle


def test_what_cannot_be_kept_is_used_all_the_same(model, monkeypatch):
    def refuse(*arguments):
        raise OperatorError("the disk is full")

    monkeypatch.setattr(costs, "save", refuse)
    said = []
    found = cost_for(prepare(EngineConfig(**model)), start, None, say=said.append, budget=0.3)
    assert found.cost is not None
    assert "the disk is full" in said[1]


def test_rows_a_step_follow_the_table(model):
    config = EngineConfig(**model)
    flat = CostTable(row_counts=(1, 64, 128), row_seconds=(1.0, 1.0, 3.0))
    assert step_rows(config, None, 100) == 512
    assert step_rows(config, flat, 100) == 64
    assert step_rows(msgspec.structs.replace(config, max_num_batched_tokens=48), flat, 100) == 48


def test_an_identity_names_its_file_by_all_its_fields(model):
    identity = prepare(EngineConfig(**model)).identity
    for name in identity.__struct_fields__:
        value = getattr(identity, name)
        other = msgspec.structs.replace(identity, **{name: value + type(value)(1)})
        assert path_of(other) != path_of(identity)
    assert calibration.FORMAT == 1
