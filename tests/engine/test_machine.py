"""What is switched off while a process starts is switched on again."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from shoal.engine.machine import uncollected

LEAN = """
import sys
from shoal.engine.machine import lean_torch
with lean_torch():
    import torch
assert "torch._meta_registrations" not in sys.modules
assert not hasattr(torch, "_meta_registrations")
assert torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).sum() == 24
with lean_torch():
    import torch
import torch._meta_registrations
assert torch._meta_registrations.__file__
assert torch.empty(2, 3, device="meta").t().shape == (3, 2)
"""


def fail() -> None:
    """Nested, and broken off."""
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
        raise ValueError


def test_collecting_goes_on_after_an_error_and_stays_off_where_it_was() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError):
        fail()
    assert gc.isenabled()
    gc.unfreeze()


def test_torch_without_its_shape_functions_computes_and_finds_them_later() -> None:
    subprocess.run([sys.executable, "-c", LEAN], check=True, timeout=120)
