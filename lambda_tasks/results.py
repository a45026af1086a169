"""Convert the return value of a task to JSON that every supported database can store."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from typing import Any, Final

from django.core.serializers.json import DjangoJSONEncoder

from lambda_tasks.exceptions import ResultNotSerializable
from lambda_tasks.recording.storable import MAX_JSON, unstorable

_REMEDY: Final = "Store the data elsewhere, and return a reference to it."


class ResultEncoder(DjangoJSONEncoder):
    """Django's encoder (dates, UUIDs, decimals, promises) with enums, sets, dataclasses and pydantic models."""

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

    Raises `ResultNotSerializable` with the reason: a type without a JSON representation, NaN or infinity, a cycle,
    characters that databases reject (NUL, lone surrogates), or too many levels or bytes.
    """
    if result is None or result is True or result is False:
        return result
    try:
        text = json.dumps(result, cls=ResultEncoder, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except Exception as error:  # a property or a serializer of the result can raise any exception
        raise ResultNotSerializable(
            f"The result, of type {type(result).__name__}, cannot be stored as JSON: {error}. "
            "Return plain values or None."
        ) from error
    if size > MAX_JSON:
        raise ResultNotSerializable(
            f"The result must be at most {MAX_JSON:,} bytes of JSON, not {size:,} bytes. {_REMEDY}"
        )
    plain = json.loads(text)
    if problem := unstorable(plain):
        raise ResultNotSerializable(f"The result {problem}. {_REMEDY}")
    return plain
