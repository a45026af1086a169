"""Convert the recorded result of a task back to the type of its return annotation."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lambda_tasks.definition import schemas
from lambda_tasks.exceptions import ResultNotSerializable
from lambda_tasks.results import json_result

if TYPE_CHECKING:
    from pydantic_core import SchemaValidator


class ReturnType:
    """The return annotation of a task's function, which is evaluated on first use."""

    def __init__(self, annotation: Any, names: Mapping[str, Any]) -> None:
        self._annotation = annotation
        self._names = dict(names)

    def read(self, result: Any) -> Any:
        """Return the JSON value `result` as a value of the annotated type, or unchanged if it does not represent one.

        It is read as the JSON of an argument, by the same rules. The value must have the same JSON as the result: a
        return value of a subclass, for example, may have fields that the annotated type does not have.
        """
        validator = self._validator
        if validator is None:
            return result
        from pydantic_core import to_json

        try:
            value = validator.validate_json(to_json({"result": result}))["result"]
            same = _ordered(json_result(value)) == _ordered(result)
        except (ValueError, ResultNotSerializable):  # pydantic's errors are ValueErrors
            return result
        return value if same else result

    @cached_property
    def _validator(self) -> SchemaValidator | None:
        """The validator of the annotation; None without an annotation, or if pydantic cannot use it."""
        if self._annotation in (inspect.Signature.empty, Any, None, "Any", "None"):
            return None
        try:
            from pydantic import TypeAdapter
            from pydantic_core import SchemaValidator

            adapter: TypeAdapter[Any] = TypeAdapter(self._object_type())
            adapter.rebuild(_types_namespace=self._names, raise_errors=True)
            return SchemaValidator(schemas.adapted(adapter.core_schema), **schemas.inside_models(SchemaValidator))
        except Exception:  # evaluating an annotation can raise any exception
            return None

    def _object_type(self) -> Any:
        """Return the type of a JSON object with the result, with the configuration that arguments have."""
        from pydantic import ConfigDict
        from typing_extensions import Required, TypedDict

        def bare() -> None: ...

        bare.__annotations__ = {"result": self._annotation}
        annotation = typing.get_type_hints(bare, globalns=self._names, include_extras=True)["result"]
        make_type: Any = TypedDict  # mypy requires a literal dict
        object_type = make_type("Result", {"result": Required[annotation]})
        object_type.__pydantic_config__ = ConfigDict(strict=True, extra="forbid", val_json_bytes="base64")
        return object_type


def _ordered(value: Any) -> Any:
    """Return JSON with its lists in a canonical order: a set is written in any order, and other lists keep theirs."""
    if isinstance(value, dict):
        return {name: _ordered(item) for name, item in value.items()}
    if isinstance(value, list):
        return sorted(map(_ordered, value), key=lambda item: json.dumps(item, sort_keys=True))
    return value
