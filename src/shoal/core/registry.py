"""Names to parts, loaded on first use. Tiny and strict: unknown and doubled names are refused."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

from shoal.core.errors import OperatorError


class Registry:
    """``name -> "module:attribute"``. The module is imported when the name is first asked for."""

    def __init__(self, what: str, homes: dict[str, str]) -> None:
        self.what = what
        self._homes = dict(homes)

    def names(self) -> list[str]:
        return sorted(self._homes)

    def name_of(self, home: str) -> str | None:
        """The first name under which a part is listed, None if under none."""
        return next((name for name in self.names() if self._homes[name] == home), None)

    def add(self, name: str, home: str) -> None:
        """Raises OperatorError if ``name`` is taken by another part."""
        if self._homes.get(name, home) != home:
            raise OperatorError(
                f"{self.what} {name!r} is defined twice: {self._homes[name]} and {home}",
                remedy="uninstall one of the two packages",
            )
        self._homes[name] = home

    def get(self, name: str) -> Any:
        """Raises OperatorError for an unknown name, with the valid ones."""
        if name not in self._homes:
            near = difflib.get_close_matches(name, self._homes, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise OperatorError(
                f"unknown {self.what} {name!r}", remedy=f"{hint}valid: {', '.join(self.names())}"
            )
        module, _, attribute = self._homes[name].partition(":")
        return getattr(import_module(module), attribute)
