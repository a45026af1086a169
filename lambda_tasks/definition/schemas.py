"""Adapt pydantic's schema of a task's arguments, so that acceptance depends on types and never on values.

Two members of a union may have the same JSON: the string of a UUID in `str | UUID` may have been sent as either.
Pydantic reads such strings generously, so "1735689600" would arrive as a date in `date | str`. The adapted schema reads
a value as a member of a union only if that member writes the very same JSON. Also, an int that was sent for a `float`
stays an int, since a float cannot represent every int.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from pydantic_core import SchemaSerializer, SchemaValidator

_Schema: TypeAlias = dict[str, Any]

#: The configuration of validators and serializers; `SchemaSerializer` ignores the keys of validation, and vice versa.
CONFIG: Final[Any] = {"strict": True, "val_json_bytes": "base64", "ser_json_bytes": "base64"}

#: Schemas of JSON's own scalars, which are read as they are.
_SCALARS: Final = frozenset({"str", "int", "float", "bool", "none", "literal", "any"})
#: Schemas whose JSON is a list or an object, which pydantic tells apart by their contents.
_COMPOUND: Final = frozenset(
    {"list", "tuple", "set", "frozenset", "dict", "model", "dataclass", "typed-dict", "named-tuple", "call"}
    | {"generator", "union", "tagged-union", "nullable"}
)
#: Keys of a schema that contain no schemas. Their values may look like one, such as a default.
_OPAQUE: Final = frozenset(
    {"metadata", "serialization", "default", "expected", "members", "function", "cls", "config", "computed_fields"}
    | {"ref", "schema_ref", "discriminator"}
)
_CONSTRAINTS: Final = frozenset({"gt", "ge", "lt", "le", "multiple_of"})


def adapted(schema: Any) -> Any:
    """Return the schema of the arguments, with unions and floats that are read exactly."""
    return _Adapter(schema).adapt(schema)


def has_choices(schema: Any) -> bool:
    """Return whether an adapted schema has unions whose choices `noting_choices()` notes."""
    return any(part.get("type") == "json-or-python" and _original(part) is not part for part in _parts(schema))


def for_writing(schema: Any) -> Any:
    """Return the schema of the serializer: it writes ints as ints where a float is annotated, and bytes as base64.

    It omits fields of dataclasses with `init=False`, since a worker computes them again.
    """

    def omit_computed(part: _Schema) -> _Schema:
        computed = part.get("type") == "dataclass-field" and not part.get("init", True)
        return {**part, "serialization_exclude": True} if computed else part

    def write_exactly(part: _Schema) -> _Schema:
        match part.get("type"):
            case "float":
                return {"type": "union", "choices": [part, {"type": "int"}]}
            case "typed-dict" | "dataclass":  # their configurations replace the one of the arguments
                return {**part, "config": {"ser_json_bytes": "base64", **part.get("config", {})}}
        return part

    # Models have validated their floats, and may write infinity in a way of their own.
    return _mapped(_mapped(schema, omit_computed), write_exactly, skip=("model",))


def inside_models(builder: type) -> dict[str, Any]:
    """Return the options with which `builder` also applies a schema inside of pydantic models.

    Before version 2.13, pydantic always uses the validators and serializers that the models have already.
    """
    return {"_use_prebuilt": False} if "_use_prebuilt" in (getattr(builder, "__text_signature__", None) or "") else {}


def members_without_json(schema: Any) -> Iterator[Enum]:
    """Yield the members of enums whose value is not a JSON scalar, by which a worker could not find them again.

    Enums that have a validator of their own are left out.
    """
    for part in _parts(schema, skip=frozenset({"function-before", "function-wrap", "function-plain"})):
        if part.get("type") == "enum":
            yield from (each for each in part["members"] if not isinstance(each.value, str | int | float | None))


class _Adapter:
    def __init__(self, schema: Any) -> None:
        self._definitions: dict[str, _Schema] = {
            part["ref"]: part
            for definitions in _parts(schema)
            if definitions.get("type") == "definitions"
            for part in definitions["definitions"]
        }

    def adapt(self, schema: Any) -> Any:
        return _mapped(schema, self._adapt_part)

    def _adapt_part(self, part: _Schema) -> _Schema:
        match part.get("type"):
            case "float":
                return _float_or_int(part)
            case "union":
                return self._exact(part, as_key=False)
            case "dict" if "keys_schema" in part:
                return {**part, "keys_schema": self._adapt_key(part["keys_schema"])}
        return part

    def _adapt_key(self, schema: _Schema) -> _Schema:
        # Adapted as a value before: take that back, since the keys of a JSON object are always strings.
        original: _Schema = _original(schema)
        return self._exact(original, as_key=True) if original.get("type") == "union" else original

    def _exact(self, union: _Schema, *, as_key: bool) -> _Schema:
        """Return a union that reads JSON as the first member that writes the same JSON, with plain types last."""
        choices = [choice[0] if isinstance(choice, tuple) else choice for choice in union["choices"]]
        kinds = [self._kind(choice) for choice in choices]
        has_text = "str" in kinds
        exact: list[tuple[str, _Schema]] = []
        plain: list[_Schema] = []
        for choice, kind in zip(choices, kinds, strict=True):
            if kind == "bytes" and has_text:
                continue  # almost any word is also the base64 form of some bytes
            if kind == "str" or kind in _COMPOUND or (kind in _SCALARS and not as_key):
                plain.append(choice)
            else:
                exact.append((kind, choice))
        if len(plain) == len(choices):
            return union
        rest = {**union, "choices": plain} if has_text else union
        exact.sort(key=lambda member: member[0] == "bytes")  # last, since they write almost anything
        chosen = [choice for _, choice in exact]
        readable = {**union, "choices": [*chosen, *plain]}
        members = _Members(readable, chosen, list(self._definitions.values()), as_key=as_key)
        return {
            "type": "json-or-python",
            "json_schema": {
                "type": "function-wrap",
                "function": {"type": "no-info", "function": members.read},
                "schema": {"type": "json", "schema": _in_key(rest) if as_key else rest},
            },
            "python_schema": union,
            "metadata": {_ORIGINAL: union},
        }

    def _kind(self, schema: _Schema) -> str:
        """Return the type at the core of `schema`, below functions, constraints and defaults."""
        kind = str(schema.get("type"))
        if kind == "definition-ref":
            return self._kind(self._definitions[schema["schema_ref"]])
        if kind in ("function-after", "function-before", "function-wrap", "default", "chain") and "schema" in schema:
            inner = self._kind(schema["schema"])
            # A function may make anything of a string: a path is read from one.
            return inner if inner in _COMPOUND or kind == "default" or "serialization" not in schema else kind
        return kind


_ORIGINAL: Final = "lambda_tasks_original"


def _original(schema: _Schema) -> _Schema:
    metadata = schema.get("metadata")
    return metadata.get(_ORIGINAL, schema) if isinstance(metadata, dict) else schema


def _float_or_int(schema: _Schema) -> _Schema:
    if schema.keys() & _CONSTRAINTS:
        keep_int = {"type": "no-info", "function": _keep_int}
        checked: _Schema = {"type": "function-wrap", "function": keep_int, "schema": schema}
    else:
        checked = {
            "type": "union",
            "choices": [{"type": "int", "strict": True}, schema],
            "custom_error_type": "float_type",
        }
    return {**checked, "metadata": {_ORIGINAL: schema}}


def _keep_int(value: Any, validate: Callable[[Any], Any]) -> Any:
    checked = validate(value)
    return value if type(value) is int else checked


#: The values that unions have chosen in this context, by their ids, each with its union; None if they are not compared.
_chosen: ContextVar[dict[int, tuple[Any, _Members]] | None] = ContextVar("lambda_tasks_chosen", default=None)


@contextmanager
def noting_choices() -> Iterator[Callable[[object, object], bool]]:
    """Yield a function that tells whether a union has read what was sent as another of its members.

    It applies to JSON that is read inside the `with` block.
    """
    chosen: dict[int, tuple[Any, _Members]] = {}

    def read_as_another_member(sent: object, arrived: object) -> bool:
        found = chosen.get(id(arrived))
        return found is not None and found[1].has(sent)

    token = _chosen.set(chosen)
    try:
        yield read_as_another_member
    finally:
        _chosen.reset(token)


class _Members:
    """The members of a union that may write the JSON of another one, and are therefore tried one by one."""

    def __init__(
        self, union: _Schema, exact: Sequence[_Schema], definitions: Sequence[_Schema], *, as_key: bool
    ) -> None:
        self._union = _with_definitions(union, definitions)
        self._exact = [_Member(_with_definitions(_in_key(each) if as_key else each, definitions)) for each in exact]
        self._as_key = as_key

    def read(self, value: Any, otherwise: Callable[[Any], Any]) -> Any:
        """Return the first member that writes the very same JSON, or what pydantic makes of the others."""
        from pydantic_core import to_json

        text = to_json({value: None} if self._as_key else value)
        for member in self._exact:
            try:
                found = member.read(text)
            except ValueError:  # the base class of all of pydantic's errors
                continue
            found = next(iter(found)) if self._as_key else found
            if (chosen := _chosen.get()) is not None:
                chosen[id(found)] = found, self
            return found
        found = otherwise(text)
        return next(iter(found)) if self._as_key else found

    def has(self, value: object) -> bool:
        """Tell whether the union accepts `value`."""
        return bool(self._validator.isinstance_python(value))

    @cached_property
    def _validator(self) -> SchemaValidator:
        from pydantic_core import SchemaValidator

        return SchemaValidator(self._union, CONFIG)


class _Member:
    """A member of a union, with its own validator and serializer."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema

    def read(self, text: bytes) -> Any:
        """Return the value that this member writes as `text`, or raise ValueError."""
        value = self._validator.validate_json(text)
        if self._serializer.to_json(value, warnings=False) != text:
            raise ValueError
        return value

    @cached_property
    def _validator(self) -> SchemaValidator:
        from pydantic_core import SchemaValidator

        return SchemaValidator(self._schema, CONFIG)

    @cached_property
    def _serializer(self) -> SchemaSerializer:
        from pydantic_core import SchemaSerializer

        return SchemaSerializer(self._schema, CONFIG)


def _with_definitions(schema: _Schema, definitions: Sequence[_Schema]) -> Any:
    refers = any(part.get("type") == "definition-ref" for part in _parts(schema))
    return {"type": "definitions", "schema": schema, "definitions": list(definitions)} if refers else schema


def _in_key(schema: _Schema) -> _Schema:
    return {"type": "dict", "keys_schema": schema, "values_schema": {"type": "any"}}


def _mapped(node: Any, change: Callable[[_Schema], _Schema], skip: Collection[str] = ()) -> Any:
    """Return a copy of a schema in which `change` has replaced every part, the innermost first."""
    if isinstance(node, list):
        return [_mapped(item, change, skip) for item in node]
    if isinstance(node, tuple):
        return tuple(_mapped(item, change, skip) for item in node)
    if not isinstance(node, dict) or str(node.get("type")) in skip:
        return node
    if not isinstance(node.get("type"), str):  # fields by their names, of which one may be "default"
        return {name: _mapped(item, change, skip) for name, item in node.items()}
    return change({key: item if key in _OPAQUE else _mapped(item, change, skip) for key, item in node.items()})


def _parts(node: Any, *, skip: Collection[str] = ()) -> list[_Schema]:
    found: list[_Schema] = []

    def note(part: _Schema) -> _Schema:
        found.append(part)
        return part

    _mapped(node, note, skip)
    return found
