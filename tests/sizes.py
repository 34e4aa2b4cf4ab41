"""One suite, several sizes: every test takes its size from here."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")


def size(small: T, long: T) -> T:
    """``small`` in the everyday suite, ``long`` under ``make test-long`` and ``make acceptance``."""
    return long if os.environ.get("SHOAL_TEST_SIZE") == "long" else small
