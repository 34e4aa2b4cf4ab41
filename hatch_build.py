"""Builds the compiled kernels with whatever C++ compiler is here; without one the package does without."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("src/shoal/kernels/native")
LIBRARY = Path("src/shoal/kernels/_native.so")
# No sum is left to the compiler: the order of arithmetic is the code's.
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
FILES = {"portable": [], "team": [], "api": []}
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
X86 = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512bf16"],
}


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        try:
            build(root)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            self.app.display_warning(f"shoal is installed without its compiled kernels: {said[-2000:]}")
            (root / LIBRARY).unlink(missing_ok=True)
            return
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def build(root: Path, extra: tuple[str, ...] = ()) -> None:
    """Compile and link into the source tree; ``extra`` flags go to both.

    Raises:
        OSError: no compiler. subprocess.CalledProcessError: it refused.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise OSError("no C++ compiler was found")
    files = FILES | (X86 if platform.machine() in ("x86_64", "AMD64") else {})
    objects = root / "build" / "native"
    objects.mkdir(parents=True, exist_ok=True)
    running = [
        subprocess.Popen(
            [
                compiler,
                *FLAGS,
                *flags,
                *extra,
                "-c",
                root / SOURCES / f"{name}.cpp",
                "-o",
                objects / f"{name}.o",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, flags in files.items()
    ]
    said = [process.communicate()[1] for process in running]
    for process, text in zip(running, said):
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args, stderr=text)
    parts = [str(objects / f"{name}.o") for name in files]
    # Beside the old library and then in its place: a process that has it open keeps what it has.
    fresh = root / LIBRARY.with_suffix(".new")
    command = [compiler, "-shared", *extra, *parts, "-pthread", "-o", str(fresh)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    fresh.replace(root / LIBRARY)


if __name__ == "__main__":
    build(Path(__file__).parent, tuple(sys.argv[1:]))
