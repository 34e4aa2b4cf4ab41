"""The package installs with and without a compiler."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def hook():
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path, hook):
    shutil.copytree(ROOT / hook.SOURCES, tmp_path / hook.SOURCES)
    return tmp_path


class Told:
    """What the installer shows."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, text: str) -> None:
        self.warnings.append(text)


def install(hook, root):
    told, data = Told(), {"artifacts": [], "pure_python": True}
    found = hook.CustomBuildHook(str(root), {}, None, None, "", "wheel", told)
    found.initialize("standard", data)
    return told.warnings, data


def test_without_a_compiler_it_says_so_and_installs(hook, tree, monkeypatch):
    (tree / hook.LIBRARY).write_bytes(b"of an older build")
    monkeypatch.setenv("CXX", str(tree / "no-such-compiler"))
    warnings, data = install(hook, tree)
    assert len(warnings) == 1
    assert "without its compiled kernels" in warnings[0]
    assert data == {"artifacts": [], "pure_python": True}
    assert not (tree / hook.LIBRARY).exists()


def test_a_compiler_that_refuses_is_quoted(hook, tree):
    (tree / hook.SOURCES / "api.cpp").write_text("this is no C++")
    warnings, _ = install(hook, tree)
    assert "this is no C++" in warnings[0]


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_with_a_compiler_the_library_is_part_of_the_package(hook, tree):
    warnings, data = install(hook, tree)
    assert not warnings
    assert data["artifacts"] == [str(hook.LIBRARY)]
    symbols = subprocess.run(["nm", "-D", tree / hook.LIBRARY], capture_output=True, text=True).stdout
    assert "shoal_forward" in symbols
