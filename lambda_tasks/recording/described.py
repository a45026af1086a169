"""Describe the values of settings for errors: by type and by name, since a value may contain a password."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, Final

#: The length of the longest string that is shown. Longer strings are more likely to be secrets than typing errors.
MOST_SHOWN: Final = 80
#: The number of a dict's keys that are shown.
_MOST_NAMES: Final = 20
#: Matches strings that are not shown: they contain a user, or something that is named like a password.
_SUSPICIOUS: Final = r"(?i)@|(pass|pwd|secret|token|credential|key)\w*\s*[=:]"
_SCHEME: Final = r"[A-Za-z][A-Za-z0-9+.-]*://"
#: Options whose values are never quoted.
_SECRET_OPTION: Final = r"(?i)pass|pwd|secret|token|credential|auth|key|url|dsn|client"


def described(value: object) -> str:
    """Return a description of `value` for an error: numbers and short strings in full, anything else by its type."""
    if isinstance(value, str):
        return _described_string(value)
    if value is None or isinstance(value, bool | int | float) or (isinstance(value, list | tuple | dict) and not value):
        return repr(value)
    if isinstance(value, type | FunctionType):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__module__}.{value.__qualname__}"
    if isinstance(value, ModuleType):
        return f"the module {value.__name__}"
    if isinstance(value, dict):
        return f"a {type(value).__name__} with the keys {names(value)}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"a {type(value).__name__} of {len(value)} items"
    return f"an object of the type {type(value).__module__}.{type(value).__qualname__}"


def _described_string(text: str) -> str:
    if "://" in text and (scheme := re.match(_SCHEME, text)):
        return f"'{scheme[0]}…' (a URL, not shown in case it contains a password)"
    if len(text) > MOST_SHOWN or re.search(_SUSPICIOUS, text):
        return f"a string of {len(text)} characters (not shown in case it is a secret)"
    return repr(text)


def names(mapping: Mapping[Any, Any]) -> str:
    """Return the keys of `mapping` as a list in brackets, without values."""
    shown = [described(key) for key in sorted(mapping, key=str)[:_MOST_NAMES]]
    return f"[{', '.join([*shown, '…'] if len(mapping) > _MOST_NAMES else shown)}]"


def without_secrets(text: str, options: Mapping[Any, Any]) -> str:
    """Return `text` without the values of `options` that may be secrets."""
    from lambda_tasks.recording.masking import scrubbed

    return scrubbed(text, list(_secrets(options)))


def _secrets(options: Any, name: str = "") -> Iterator[object]:
    if isinstance(options, Mapping):
        for key, value in options.items():
            yield from _secrets(value, f"{name}.{key}")
    elif isinstance(options, list | tuple | set | frozenset):
        for value in options:
            yield from _secrets(value, name)
    elif isinstance(options, bytes) or (
        isinstance(options, str) and (re.search(_SECRET_OPTION, name) or described(options) != repr(options))
    ):
        yield options
        yield from _parts_of_url(options)


def _parts_of_url(url: str | bytes) -> Iterator[str | bytes]:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        yield from (part for part in (parts.password, parts.query) if part)
    except ValueError:
        return
