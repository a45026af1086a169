"""Encrypt sensitive arguments in messages with Fernet, which needs the extra `encryption`.

No error, log line or `repr()` of the library contains a key or a value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.exceptions import ArgumentsUnreadable
from lambda_tasks.settings import app_settings
from lambda_tasks.wire.invocation import Invocation

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

#: The only key of a JSON object that stands for an encrypted argument.
_MARK: Final = "lambda_tasks.encrypted"


def encrypted(message: Invocation, names: Iterable[str]) -> Invocation:
    """Return `message` with the arguments `names` encrypted by the first key of LAMBDA_TASKS_ENCRYPTION_KEYS.

    Without keys, return it as it is.
    """
    keys = app_settings.encryption_keys
    chosen = [name for name in names if name in message.kwargs and not _is_encrypted(message.kwargs[name])]
    if not keys or not chosen:
        return message
    fernet = _fernet(tuple(keys))

    def token(name: str) -> str:
        # The names prevent an argument from being moved to another place.
        content = json.dumps([message.task_name, name, message.kwargs[name]], separators=(",", ":"))
        return fernet.encrypt(content.encode()).decode()

    return replace(message, kwargs={**message.kwargs, **{name: {_MARK: token(name)} for name in chosen}})


def decrypted(message: Invocation, names: Iterable[str]) -> Invocation:
    """Return `message` with those of the arguments `names` decrypted that are encrypted.

    Raise `ArgumentsUnreadable`, without their values, if no key in LAMBDA_TASKS_ENCRYPTION_KEYS can decrypt them.
    """
    chosen = [name for name in names if _is_encrypted(message.kwargs.get(name))]
    if not chosen:
        return message
    return replace(message, kwargs={**message.kwargs, **_decrypted(message, chosen)})


def _decrypted(message: Invocation, names: Iterable[str]) -> dict[str, Any]:
    keys = app_settings.encryption_keys
    values: dict[str, Any] = {}
    for name in names:
        content = _content(tuple(keys), message.kwargs[name]) if keys else None
        if content is None:
            raise ArgumentsUnreadable(
                f"No key in LAMBDA_TASKS_ENCRYPTION_KEYS can decrypt argument {name} of {message.task_name}. Give the "
                "worker the same keys as the sender, and keep an old key until no message needs it."
            )
        if content[:2] != [message.task_name, name]:
            raise ArgumentsUnreadable(
                f"Argument {name} of {message.task_name} was encrypted for another argument or task. The message was "
                "changed after the call."
            )
        values[name] = content[2]
    return values


def _content(keys: tuple[str, ...], value: Mapping[str, str]) -> list[Any] | None:
    from cryptography.fernet import InvalidToken

    try:
        content: list[Any] = json.loads(_fernet(keys).decrypt(value[_MARK].encode()))
    except InvalidToken:
        return None
    return content


def _is_encrypted(value: Any) -> bool:
    return type(value) is dict and len(value) == 1 and isinstance(value.get(_MARK), str)


@lru_cache(maxsize=4)
def _fernet(keys: tuple[str, ...]) -> MultiFernet:
    from cryptography.fernet import Fernet, MultiFernet  # takes a while, and few projects need it

    return MultiFernet([Fernet(key) for key in keys])
