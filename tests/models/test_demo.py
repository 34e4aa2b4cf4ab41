"""The demo model: put together once, verified, and refused when a byte is wrong."""

from __future__ import annotations

import hashlib
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from shoal.core.errors import OperatorError
from shoal.models import demo


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Four small part packages in place of the real ones."""
    files = []
    for number, (module, name) in enumerate(demo.PARTS):
        home = tmp_path / "site" / module
        (home / name).parent.mkdir(parents=True)
        (home / name).write_bytes(bytes([number]) * 1000)
        (home / "__init__.py").touch()
        fake = types.ModuleType(module)
        fake.__spec__ = ModuleSpec(module, None, origin=str(home / "__init__.py"))
        monkeypatch.setitem(sys.modules, module, fake)
        files.append(home / name)
    whole = b"".join(file.read_bytes() for file in files)
    monkeypatch.setattr(demo, "SHA256", hashlib.sha256(whole).hexdigest())
    return files


def test_it_is_assembled_once_and_stamped(parts: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = demo.demo_model(cache)
    assert path.read_bytes() == b"".join(part.read_bytes() for part in parts)
    before = path.stat().st_ino
    assert demo.demo_model(cache) == path
    assert path.stat().st_ino == before
    assert {file.name for file in cache.iterdir()} == {demo.NAME, f"{demo.NAME}.sha256"}


def test_a_shortened_file_or_a_missing_stamp_is_assembled_again(parts: list[Path], tmp_path: Path) -> None:
    path = demo.demo_model(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert demo.demo_model(tmp_path).read_bytes() == whole
    (tmp_path / f"{demo.NAME}.sha256").unlink()
    path.write_bytes(b"x" * len(whole))
    assert demo.demo_model(tmp_path).read_bytes() == whole


def test_a_wrong_byte_is_refused_and_leaves_nothing(parts: list[Path], tmp_path: Path) -> None:
    parts[2].write_bytes(b"?" + parts[2].read_bytes()[1:])
    cache = tmp_path / "cache"
    with pytest.raises(OperatorError, match="SHA-256"):
        demo.demo_model(cache)
    assert list(cache.iterdir()) == []


def test_a_missing_package_names_the_extra(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts[3].unlink()
    with pytest.raises(OperatorError) as caught:
        demo.demo_model(tmp_path / "cache")
    assert "shoal[demo]" in caught.value.remedy
    monkeypatch.setattr(demo, "PARTS", (("no_such_package_at_all", "x"),))
    with pytest.raises(OperatorError):
        demo.demo_model(tmp_path / "cache")


def test_a_folder_that_cannot_be_written(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(OperatorError, match="cannot be written"):
        demo.demo_model(tmp_path / "cache")


def test_the_cache_folder_follows_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    assert demo.cache_folder() == tmp_path
    monkeypatch.delenv("SHOAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert demo.cache_folder() == tmp_path / "caches" / "shoal"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert demo.cache_folder() == Path.home() / ".cache" / "shoal"
