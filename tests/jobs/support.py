"""Small jobs for tests: inputs, runs in this process on the null model, and results to compare."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal.core.config import EngineConfig
from shoal.engine.build import Prepared, prepare, start
from shoal.engine.engine import Engine
from shoal.jobs.job import Job, Planned, Status, Summary
from shoal.jobs.runner import run_job


class Listener:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.prepared: list[int] = []
        self.plans: list[Planned] = []
        self.shown = 0

    def preparing(self, done: int, size: int, rows: int, bad: int, tokens: int) -> None:
        self.prepared.append(rows)

    def planning(self, done: int, rows: int) -> None:
        self.shown += 1

    def measuring(self, what: str, share: float) -> None:
        self.shown += 1

    def planned(self, plan: Planned) -> None:
        self.plans.append(plan)

    def begin(self, engine: Engine) -> None:
        self.shown += 1

    def running(self, status: Status, now: float) -> None:
        self.shown += 1

    def say(self, text: str) -> None:
        self.said.append(text)


def completion(identifier: str, prompt: Any, **fields: Any) -> dict[str, Any]:
    """An OpenAI batch line for the completions API."""
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0, **fields}
    return {"custom_id": identifier, "method": "POST", "url": "/v1/completions", "body": body}


def chat(identifier: str, text: str, **fields: Any) -> dict[str, Any]:
    """An OpenAI batch line for the chat API."""
    messages = [{"role": "user", "content": text}]
    body = {"messages": messages, "max_tokens": 4, "temperature": 0, **fields}
    return {"custom_id": identifier, "method": "POST", "url": "/v1/chat/completions", "body": body}


def write_lines(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines; bytes stand as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def mixed_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of every kind that can be answered: equal ones, sampled ones, several answers, both APIs."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        text = "".join(rng.choice("abcdefgh ") for _ in range(rng.randint(5, 40)))
        kind = rng.random()
        if kind < 0.15 and rows:
            rows.append({**rng.choice(rows), "custom_id": f"r{i}"})
        elif kind < 0.3:
            rows.append(completion(f"r{i}", text, temperature=1.0, n=rng.randint(1, 3)))
        elif kind < 0.5:
            rows.append(chat(f"r{i}", text, max_tokens=rng.randint(1, 9)))
        else:
            rows.append(completion(f"r{i}", text, max_tokens=rng.randint(1, 9)))
    return rows


def run(
    job: Job,
    *,
    config: EngineConfig | None = None,
    engine: Callable[[Engine], None] | None = None,
    stopping: Callable[[], bool] = lambda: False,
    watcher: Listener | None = None,
) -> Summary:
    """Run a job on the null model in this process; ``engine`` may alter the engine first."""
    prepared = prepare(config or EngineConfig(model="null", max_num_seqs=16, max_model_len=256))

    def started(prepared: Prepared) -> Engine:
        made = start(prepared)
        if engine is not None:
            engine(made)
        return made

    return run_job(job, prepared, started, watcher or Listener(), stopping)


def results(path: Path) -> list[dict[str, Any]]:
    """The result lines of a file, in its order."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def normal(line: dict[str, Any]) -> dict[str, Any]:
    """A result without what a different course of the run may change: ids, times, cache hits."""
    line = json.loads(json.dumps(line))
    line.pop("id")
    for name in ("cached_tokens", "computed_tokens"):
        line["shoal"].pop(name)
    if line["response"]:
        line["response"].pop("request_id")
        body = line["response"]["body"]
        body.pop("id")
        body.pop("created")
        body["usage"].pop("prompt_tokens_details")
    return line


def answers(path: Path) -> dict[int, dict[str, Any]]:
    """Normalised results by input line; a line that stands twice is an error."""
    found = results(path)
    by_line = {line["shoal"]["line"]: normal(line) for line in found}
    assert len(by_line) == len(found), "a row was answered twice"
    return by_line
