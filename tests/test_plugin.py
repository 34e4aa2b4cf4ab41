"""A policy from another package, installed the way a user would, is chosen by its name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "examples" / "plugin"

NAMES = """
import json
from shoal.core.policies import registry

print(json.dumps(registry("order").names()))
"""

USE = """
import json
from shoal.core.policies import make
from tests.engine.harness import drain, null_engine, request

def ended(order):
    engine = null_engine(order=order, max_running=1)
    for name, tokens in [("short", 2), ("long", 9), ("middle", 5), ("longer", 9)]:
        engine.add(request(name, [1, 2, 3], max_tokens=tokens, ignore_eos=True), now=0.0)
    return list(drain(engine))

print(json.dumps([repr(make("order", "longest:bucket=4")), ended("fcfs"), ended("longest")]))
"""


def python(*arguments: str, site: Path | None = None) -> str:
    path = os.pathsep.join(str(folder) for folder in (ROOT, site) if folder)
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The plugin, built and installed by pip into a folder of its own, from a copy of its sources."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    python("-m", "pip", "install", *options, "--target", str(folder / "site"), str(folder / "source"))
    return folder / "site"


def test_an_installed_policy_is_chosen_by_name_and_decides(site):
    shown, first_come, longest = json.loads(python("-c", USE, site=site))
    assert shown == "Longest(bucket=4)"
    assert first_come == ["short", "long", "middle", "longer"]
    assert longest == ["long", "longer", "middle", "short"]


def test_it_is_listed_only_where_it_is_installed(site):
    assert "longest" in json.loads(python("-c", NAMES, site=site))
    assert "longest" not in json.loads(python("-c", NAMES))
