"""Import modules when they are used.

Every process with Django's admin imports the classes in this package, and most of them show no page.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class later:  # noqa: N801, used like a function
    """A stand-in for the module `name`, which is imported when one of its names is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)
