"""The house: doors, cold rooms, and one policy = one file and one line."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import shoal

ROOT = Path(__file__).resolve().parents[1]
HOT = (
    "shoal.kernels",
    "shoal.models.tensors",
    "shoal.engine.tensors",
    "shoal.memory.tensors",
    "shoal.bench.tensors",
    "shoal.experiments.tensors",
)

COLD_IMPORT = """
import importlib, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "pyarrow", "matplotlib"):
            raise ImportError(f"{name} is not to be imported here")
sys.meta_path.insert(0, Without())
for name in sys.argv[1:]:
    importlib.import_module(name)
assert "torch" not in sys.modules
"""


def modules():
    return [m.name for m in pkgutil.walk_packages(shoal.__path__, "shoal.")]


def test_every_cold_room_imports_without_torch_and_extras():
    cold = [name for name in modules() if not name.startswith(HOT)]
    assert {"shoal.reuse", "shoal.experiments.claims", "shoal.jobs.runner"} <= set(cold)
    subprocess.run([sys.executable, "-c", COLD_IMPORT, *cold], check=True, timeout=120)


def test_no_import_goes_through_a_shut_door():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_torch_is_named_only_where_it_may_live():
    for file in (ROOT / "src" / "shoal").rglob("*.py"):
        name = ".".join(file.relative_to(ROOT / "src").with_suffix("").parts)
        if not name.startswith(HOT):
            for line in file.read_text().splitlines():
                assert not line.strip().startswith(("import torch", "from torch")), f"{name}: {line}"


def test_every_module_says_what_it_is():
    for file in (ROOT / "src" / "shoal").rglob("*.py"):
        text = file.read_text()
        if text.strip():
            assert text.lstrip().startswith('"""'), file


def test_an_order_policy_is_one_file_and_one_registry_line(tmp_path):
    """Follow ARCHITECTURE.md: a file in schedule/order/, a line in core/policies.py, and it is there."""
    home = tmp_path / "src" / "shoal"
    subprocess.run(
        ["cp", "-r", str(ROOT / "src" / "shoal"), str(home.parent.mkdir(parents=True) or home)], check=True
    )
    (home / "schedule" / "order" / "newest.py").write_text(
        '"""Newest first."""\n\n'
        "from shoal.core.policy import Order\n\n\n"
        "class Newest(Order):\n"
        '    """Last come, first served."""\n\n'
        "    def key(self, sequence):\n"
        "        return -sequence.handle\n"
    )
    table = home / "core" / "policies.py"
    line = '        "newest": "shoal.schedule.order.newest:Newest",\n'
    text = table.read_text().replace('        "fcfs"', line + '        "fcfs"', 1)
    table.write_text(text)
    program = "import shoal, shoal.core.policies as p; print(shoal.__file__, p.make('order', 'newest'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(home.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(home) in done.stdout
    assert "Newest()" in done.stdout
