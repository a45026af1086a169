"""Convert the arguments of a task to JSON and back, with pydantic.

`TaskSignature` imports this module for the first call that is sent, or whose message has arguments that are not plain.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.definition import schemas
from lambda_tasks.definition.arguments import evaluated
from lambda_tasks.definition.problems import find_lazy, problems_of, quoted, remedy_for
from lambda_tasks.definition.roundtrip import Comparison, Difference, conversion, first_difference, same_by
from lambda_tasks.exceptions import InvalidArguments, InvalidMessage
from lambda_tasks.recording.storable import MAX_DEPTH, unstorable

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import SchemaSerializer, SchemaValidator

#: The comparison for arguments without unions whose members could be confused.
_WITHOUT_CHOICES: Final = same_by(lambda sent, arrived: False)
_REMEDY: Final = (
    "Annotate it with a type that survives the conversion to JSON, or send a primary key and look it up in the task."
)


class Conversion:
    """The conversion of the arguments of the task `name`.

    `namespace` has the names in the annotations of the parameters.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, inspect.Parameter],
        *,
        sensitive: Collection[str],
        namespace: dict[str, Any],
    ) -> None:
        self.name = name
        self.parameters = parameters
        self.sensitive = sensitive
        self._globals = namespace

    def check(self) -> None:
        """Evaluate the annotations now, and raise `InvalidArguments` if one cannot be used."""
        _ = self._adapter

    def encode(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return `arguments` as plain JSON values.

        Raises `InvalidArguments` if they do not match the annotations, or would not arrive equal. The error
        contains the name of the argument, its value and its type; only the name if the argument is sensitive.
        """
        import pydantic_core

        validator = self._validator
        # Pydantic's errors quote the values. Raise outside of the except blocks, so that an `InvalidArguments` does
        # not have such an error as its `__context__`.
        accepted = read = None
        try:
            accepted = validator.validate_python(dict(arguments))
        except pydantic_core.ValidationError as error:
            problems = self._problems(error, quoting=True)
        if accepted is None:
            raise InvalidArguments(f"Invalid arguments for {self.name}: {problems}{self._hint(arguments)}")
        text = self._to_json(accepted)
        try:
            read = self._read_back(text)
        except pydantic_core.ValidationError as error:
            culprit = self._culprit(accepted, lambda alone: pydantic_core.from_json(self._json(alone)))
            problems = self._problems(error, whole=culprit, quoting=True, sent=accepted)
        if read is None:
            raise InvalidArguments(f"The arguments of {self.name} cannot be read back from JSON: {problems}. {_REMEDY}")
        encoded = self._read(text)
        self._refuse_unstorable(encoded, text)
        self._refuse_changed(arguments, accepted, *read)
        return encoded

    def decode(self, encoded: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments as the function takes them, or raise `InvalidMessage`."""
        from pydantic import ValidationError
        from pydantic_core import to_json

        try:
            return typing.cast("dict[str, Any]", self._validator.validate_json(to_json(encoded)))
        except ValidationError as error:
            problems = self._problems(error)
        raise InvalidMessage(f"The arguments in the message do not match {self.name}: {problems}")

    def encoded(self, name: str, value: object) -> Any:
        """Return the value of one argument as JSON."""
        return self._read(self._to_json({name: value}))[name]

    def _hint(self, arguments: Mapping[str, Any]) -> str:
        """Return what to write in place of keywords that are options of a call in another library."""
        from lambda_tasks.definition.hints import for_keywords

        hint = for_keywords(arguments.keys() - self.parameters.keys())
        return f".{hint}" if hint else ""

    def _to_json(self, accepted: dict[str, Any]) -> bytes:
        import pydantic_core

        try:
            return self._json(accepted)
        except pydantic_core.PydanticSerializationError as error:
            culprit = self._culprit(accepted, self._json)
            lazy = find_lazy(accepted.get(culprit))
            reason = "" if culprit in self.sensitive else f": {quoted(lazy) if lazy is not None else error}"
            remedy = remedy_for(lazy) or _REMEDY
        raise InvalidArguments(f"Argument {culprit} of {self.name} cannot be written as JSON{reason}. {remedy}")

    def _read_back(self, text: bytes) -> tuple[dict[str, Any], Comparison]:
        """Return the arguments as they arrive, and the comparison that knows which members their unions have chosen."""
        if not self._has_choices:
            return self._validator.validate_json(text), _WITHOUT_CHOICES
        with schemas.noting_choices() as read_as_another_member:
            return self._validator.validate_json(text), same_by(read_as_another_member)

    def _read(self, text: bytes) -> dict[str, Any]:
        """Return the plain JSON values in `text`, and reject NaN and infinity, which a type's serializer may write."""
        import pydantic_core

        try:
            return typing.cast("dict[str, Any]", pydantic_core.from_json(text, allow_inf_nan=False))
        except ValueError:
            arguments = pydantic_core.from_json(text)
        culprit = self._culprit(
            arguments, lambda alone: pydantic_core.from_json(pydantic_core.to_json(alone), allow_inf_nan=False)
        )
        raise InvalidArguments(
            f"Argument {culprit} of {self.name} contains NaN or infinity, which JSON cannot represent. {_REMEDY}"
        )

    def _json(self, arguments: dict[str, Any]) -> bytes:
        # Without warnings: the comparison of what arrives finds the same problems.
        return self._serializer.to_json(arguments, warnings=False)

    def _culprit(self, accepted: Mapping[str, Any], convert: Callable[[dict[str, Any]], object]) -> str:
        """Return the name of the first argument for which `convert` fails."""
        for name, value in accepted.items():
            try:
                convert({name: value})
            except ValueError:  # the base class of all of pydantic's errors
                return name
        return "arguments"

    def _refuse_unstorable(self, encoded: Mapping[str, Any], text: bytes) -> None:
        # JSON with at most MAX_DEPTH opening brackets cannot be nested more deeply than that.
        if b"\\u0000" not in text and text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
            return
        for name, value in encoded.items():
            if problem := unstorable({name: value}, uncounted=1):
                given = "" if name in self.sensitive else f", which is {quoted(value)},"
                raise InvalidArguments(f"Argument {name} of {self.name}{given} {problem}. {_REMEDY}")

    def _refuse_changed(
        self,
        arguments: Mapping[str, Any],
        accepted: Mapping[str, Any],
        arrived: Mapping[str, Any],
        same: Comparison,
    ) -> None:
        for name, value in accepted.items():
            given = arguments.get(name, value)
            if not first_difference(given, arrived.get(name), (name,)):
                continue  # the usual case
            # pydantic may convert a value: a dict to a model, a Decimal to a float, or a string to lower case.
            change = conversion(given, value, (name,)) or first_difference(value, arrived.get(name), (name,), same=same)
            if change:
                raise InvalidArguments(self._changed(name, change))

    def _changed(self, name: str, change: Difference) -> str:
        if name in self.sensitive:
            return f"Argument {name} of {self.name} would arrive {change.how}. {_REMEDY}"
        given = f"Argument {change.where} of {self.name}, which is {quoted(change.sent)},"
        return f"{given} would arrive {change.how}. {remedy_for(change.sent) or _REMEDY}"

    def _problems(self, error: Any, *, whole: str = "arguments", **options: Any) -> str:
        return problems_of(error, whole=whole, hidden=self.sensitive, **options)

    @cached_property
    def _adapter(self) -> TypeAdapter[dict[str, Any]]:
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticUserError

        try:
            adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(self._arguments_type())
            # Does nothing if all names are known. Python 3.10 leaves some of them to pydantic, as in list["Order"].
            adapter.rebuild(_types_namespace=self._globals, raise_errors=True)
        except NameError as error:
            raise InvalidArguments(
                f"An annotation of {self.name} cannot be evaluated: {str(error).partition(chr(10))[0]}. "
                "Import the name at the top of its module, not under TYPE_CHECKING."
            ) from error
        except PydanticUserError as error:
            reason = error.message.partition(". ")[0].rstrip(".")
            raise InvalidArguments(
                f"The annotations of {self.name} include a type that cannot be converted to JSON: {reason}. "
                "Send a primary key instead, annotate its type, and look the object up in the task."
            ) from error
        except Exception as error:  # evaluating an annotation can raise any exception
            raise InvalidArguments(f"The annotations of {self.name} cannot be used: {error}") from error
        for member in schemas.members_without_json(adapter.core_schema):
            raise InvalidArguments(
                f"The annotations of {self.name} include {type(member).__qualname__}, whose member {member.name} "
                f"cannot be found by its value in JSON: {quoted(member.value)}. Send its name, and look the member up "
                "in the task."
            )
        return adapter

    @cached_property
    def _validator(self) -> SchemaValidator:
        from pydantic_core import SchemaValidator

        return SchemaValidator(self._adapted, **schemas.inside_models(SchemaValidator))

    @cached_property
    def _adapted(self) -> Any:
        return schemas.adapted(self._adapter.core_schema)

    @cached_property
    def _has_choices(self) -> bool:
        return schemas.has_choices(self._adapted)

    @cached_property
    def _serializer(self) -> SchemaSerializer:
        from pydantic_core import SchemaSerializer

        # pydantic ignores `ser_json_bytes` in the config of a TypedDict, and passes it on to dataclasses only.
        schema = schemas.for_writing(self._adapter.core_schema)
        return SchemaSerializer(schema, {"ser_json_bytes": "base64"}, **schemas.inside_models(SchemaSerializer))

    def _arguments_type(self) -> Any:
        """Return a type for all arguments together.

        It is a TypedDict, since a parameter may be named schema or model_config, which a model does not allow.
        """
        from pydantic import ConfigDict
        from typing_extensions import NotRequired, Required, TypedDict

        make_type: Any = TypedDict  # mypy requires a literal dict
        arguments = make_type(
            "Arguments",
            {
                name: Required[annotation]
                if self.parameters[name].default is inspect.Parameter.empty
                else NotRequired[annotation]
                for name, annotation in evaluated(self.parameters, self._globals).items()
            },
        )
        arguments.__pydantic_config__ = ConfigDict(
            strict=True, extra="forbid", val_json_bytes="base64", ser_json_bytes="base64"
        )
        return arguments
