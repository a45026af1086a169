"""What a task returned, as JSON that every database stores and gives back."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from typing import Any, Final

from django.core.serializers.json import DjangoJSONEncoder

from lambda_tasks.exceptions import ResultNotSerializable
from lambda_tasks.storable import MAX_DEPTH, MAX_JSON, depth

_REMEDY: Final = "store it elsewhere, and return where it is."


class ResultEncoder(DjangoJSONEncoder):
    """Django's encoder (dates, UUIDs, decimals, promises), and enums, sets, dataclasses and pydantic models."""

    def default(self, o: Any) -> Any:
        if isinstance(o, Enum):
            return o.value
        if isinstance(o, set | frozenset):
            return list(o)
        if dataclasses.is_dataclass(o) and not isinstance(o, type):
            return {field.name: getattr(o, field.name) for field in dataclasses.fields(o)}
        if hasattr(o, "model_dump"):  # pydantic, without importing it
            return o.model_dump(mode="json")
        return super().default(o)


def json_result(result: Any) -> Any:
    """Return `result` as plain JSON values.

    Raises `ResultNotSerializable` with the reason: a type without a JSON form, NaN or an infinity, a
    cycle, text that databases refuse (NUL, lone surrogates), too many levels or bytes.
    """
    if result is None or result is True or result is False:
        return result
    try:
        text = json.dumps(result, cls=ResultEncoder, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except Exception as error:  # whatever a property or a serializer of the result raises
        raise ResultNotSerializable(
            f"The result, of type {type(result).__name__}, cannot be stored as JSON: {error}. "
            "Return plain values, or nothing."
        ) from error
    if size > MAX_JSON:
        raise ResultNotSerializable(f"The result has {size:,} bytes of JSON, more than {MAX_JSON:,}; {_REMEDY}")
    plain = json.loads(text)
    if depth(plain) > MAX_DEPTH:
        raise ResultNotSerializable(f"The result is nested more than {MAX_DEPTH} levels deep; {_REMEDY}")
    if _has_nul(plain):
        raise ResultNotSerializable("The result contains a NUL character, which databases refuse.")
    return plain


def _has_nul(value: Any) -> bool:
    match value:
        case str():
            return "\x00" in value
        case list():
            return any(map(_has_nul, value))
        case dict():
            return any(map(_has_nul, value)) or any(map(_has_nul, value.values()))
        case _:
            return False
