"""What a task's function may look like, and how its arguments travel.

The rule: what is accepted at the call arrives equal in the worker. Arguments are checked strictly
against the annotations, written as JSON, read back as the worker will read them, and compared: type
by type, since 1 == True and an enum of texts equals its text.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.exceptions import InvalidArguments, InvalidMessage
from lambda_tasks.fidelity import Difference, equal, first_difference, problems_of
from lambda_tasks.plain import PlainArguments
from lambda_tasks.storable import MAX_DEPTH, depth

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import SchemaSerializer

_KINDS: Final[dict[Any, str]] = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
    inspect.Parameter.VAR_POSITIONAL: "variadic",
    inspect.Parameter.VAR_KEYWORD: "variadic",
}

_REMEDY: Final = "Annotate it so that JSON can bring it back, or send its primary key and look it up in the task."

# NUL as JSON writes it: an odd number of backslashes before u0000.
_ESCAPED_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def read_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature; annotations that cannot be evaluated yet do not matter."""
    if sys.version_info >= (3, 14):  # annotations are evaluated when they are asked for
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)


class TaskSignature:
    """The parameters of a task's function: checked when it is made, evaluated on first use.

    Evaluating late keeps pydantic out of processes that only import tasks, and lets annotations name
    what is defined further down.

    Of the parameters that are `sensitive`, errors say no more than the name.

    Raises TypeError for a function whose parameters cannot be arguments of a task, ValueError for a
    name in `sensitive` that is no parameter.
    """

    def __init__(self, function: Callable[..., Any], *, sensitive: Collection[str] = ()) -> None:
        # Builtins, classes and partials have no module whose names their annotations could mean.
        if not (hasattr(inspect.unwrap(function), "__globals__") and hasattr(function, "__qualname__")):
            raise TypeError(f"@lambda_task decorates functions, not {function!r}.")
        self.function = function
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.parameters = read_signature(function).parameters
        for parameter in self.parameters.values():
            self._check(parameter)
        self.sensitive = sensitive
        for name in sensitive:
            if name not in self.parameters:
                there_are = ", ".join(self.parameters) or "none"
                raise ValueError(
                    f"sensitive has {name!r}, which is no parameter of {self.name}; its parameters: {there_are}."
                )

    def _check(self, parameter: inspect.Parameter) -> None:
        if kind := _KINDS.get(parameter.kind):
            raise TypeError(
                f"Parameter {parameter} of {self.name} is {kind}; all parameters of a task are keyword-only: "
                "put a * before the first one, as in def task(*, user_id: int)."
            )
        if parameter.name.startswith("_"):
            raise TypeError(f"Parameter {parameter.name} of {self.name} begins with an underscore; rename it.")
        if parameter.annotation is inspect.Parameter.empty:
            raise TypeError(
                f"Parameter {parameter.name} of {self.name} has no annotation; "
                "it says what may be sent, as in user_id: int."
            )

    def check(self) -> None:
        """Evaluate the annotations now; raises `InvalidArguments` if one cannot be used."""
        _ = self._adapter

    def encode(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return `arguments` as plain JSON values.

        Raises `InvalidArguments` if they do not fit the annotations, or would not arrive equal. It names
        the argument and quotes no value: it may be a secret.
        """
        import pydantic_core

        # The validator itself, and not the adapter around it, which costs as much again.
        validator = self._adapter.validator
        # What pydantic raises quotes the values. So nothing is raised where it would hang on the error.
        accepted = arrived = None
        try:
            accepted = validator.validate_python(dict(arguments))
        except pydantic_core.ValidationError as error:
            problems = self._problems(error)
        if accepted is None:
            raise InvalidArguments(f"{self.name} cannot be called so: {problems}")
        text = self._written(accepted)
        try:
            arrived = validator.validate_json(text)
        except pydantic_core.ValidationError as error:
            culprit = self._culprit(accepted, lambda alone: pydantic_core.from_json(self._json(alone)))
            problems = self._problems(error, whole=culprit)
        if arrived is None:
            raise InvalidArguments(f"The arguments of {self.name} would not arrive: {problems}. {_REMEDY}")
        encoded = self._read(text)
        self._refuse_unstorable(encoded, text)
        self._refuse_changed(arguments, accepted, arrived)
        return encoded

    def decode(self, encoded: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments as the function takes them.

        Raises `InvalidMessage` if they do not fit the annotations: the producer has another version
        of the task.
        """
        if self._plain is not None and (arguments := self._plain.read(encoded)) is not None:
            return arguments
        from pydantic import ValidationError
        from pydantic_core import to_json

        try:
            return self._adapter.validate_json(to_json(encoded))
        except ValidationError as error:
            problems = self._problems(error)
        raise InvalidMessage(f"The message does not fit {self.name}: {problems}")

    def _written(self, accepted: dict[str, Any]) -> bytes:
        import pydantic_core

        try:
            return self._json(accepted)
        except pydantic_core.PydanticSerializationError as error:
            culprit = self._culprit(accepted, self._json)
            reason = "" if culprit in self.sensitive else f": {error}"
        raise InvalidArguments(f"Argument {culprit} of {self.name} cannot be written as JSON{reason}. {_REMEDY}")

    def _read(self, text: bytes) -> dict[str, Any]:
        """Return the plain JSON values in `text`: no NaN and no infinity, which a type's serializer may write."""
        import pydantic_core

        try:
            return typing.cast("dict[str, Any]", pydantic_core.from_json(text, allow_inf_nan=False))
        except ValueError:
            arguments = pydantic_core.from_json(text)
        culprit = self._culprit(
            arguments, lambda alone: pydantic_core.from_json(pydantic_core.to_json(alone), allow_inf_nan=False)
        )
        raise InvalidArguments(f"Argument {culprit} of {self.name} has a number that JSON has not. {_REMEDY}")

    def _json(self, arguments: dict[str, Any]) -> bytes:
        return self._serializer.to_json(arguments, warnings=False)  # what is odd will be seen on arrival

    def _culprit(self, accepted: Mapping[str, Any], trip: Callable[[dict[str, Any]], object]) -> str:
        """Return the name of the argument that alone cannot make the `trip` either."""
        for name, value in accepted.items():
            try:
                trip({name: value})
            except ValueError:  # as all of pydantic's errors are
                return name
        return "arguments"

    def _refuse_unstorable(self, encoded: Mapping[str, Any], text: bytes) -> None:
        if b"\\u0000" in text and _ESCAPED_NUL.search(text):
            from pydantic_core import to_json

            culprit = next(name for name, value in encoded.items() if _ESCAPED_NUL.search(to_json(value)))
            raise InvalidArguments(
                f"Argument {culprit} of {self.name} contains a NUL character, which databases refuse."
            )
        # Fewer brackets than that cannot be nested any deeper.
        if text.count(b"[") + text.count(b"{") > MAX_DEPTH and depth(encoded) > MAX_DEPTH:
            culprit = next(name for name, value in encoded.items() if depth(value) >= MAX_DEPTH)
            raise InvalidArguments(
                f"Argument {culprit} of {self.name} is nested more than {MAX_DEPTH - 1} levels deep. {_REMEDY}"
            )

    def _refuse_changed(
        self, arguments: Mapping[str, Any], accepted: Mapping[str, Any], arrived: Mapping[str, Any]
    ) -> None:
        for name, value in accepted.items():
            given = arguments.get(name, value)
            if given is value or equal(given, value):
                change = first_difference(value, arrived.get(name), (name,))
            else:  # pydantic may convert what it accepts: a dict to a model, a text to lower case
                change = Difference((name,), given, value)
            if change:
                where = name if name in self.sensitive else change.where
                raise InvalidArguments(f"Argument {where} of {self.name} would arrive {change.how}. {_REMEDY}")

    def _problems(self, error: Any, *, whole: str = "arguments") -> str:
        return problems_of(error, whole=whole, hidden=self.sensitive)

    @cached_property
    def _plain(self) -> PlainArguments | None:
        """What reads the arguments without pydantic; None if their types are more than JSON's own."""
        try:
            annotations = self._annotations()
        except Exception:
            return None  # pydantic says what is wrong with them
        required = {name for name, parameter in self.parameters.items() if parameter.default is parameter.empty}
        return PlainArguments.of(annotations, required=frozenset(required))

    @cached_property
    def _adapter(self) -> TypeAdapter[dict[str, Any]]:
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticUserError

        try:
            adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(self._arguments_type())
            # Does nothing where all names are known. Python 3.10 leaves some to pydantic, as in list["Order"].
            adapter.rebuild(_types_namespace=self._globals, raise_errors=True)
        except NameError as error:
            raise InvalidArguments(
                f"An annotation of {self.name} cannot be evaluated: {str(error).partition(chr(10))[0]}. "
                "Import the name at the top of its module, not under TYPE_CHECKING."
            ) from error
        except PydanticUserError as error:
            reason = error.message.partition(". ")[0].rstrip(".")
            raise InvalidArguments(
                f"The annotations of {self.name} include a type that cannot travel as JSON: {reason}. "
                "Annotate the primary key of what you mean, and look it up in the task."
            ) from error
        except Exception as error:  # whatever evaluating an annotation raises
            raise InvalidArguments(f"The annotations of {self.name} cannot be used: {error}") from error
        return adapter

    @cached_property
    def _serializer(self) -> SchemaSerializer:
        from pydantic_core import SchemaSerializer

        # One of our own, because pydantic does not read how to write bytes from a TypedDict's config.
        return SchemaSerializer(self._adapter.core_schema, {"ser_json_bytes": "base64"})

    def _arguments_type(self) -> Any:
        """Return the type of the arguments together.

        A TypedDict, since its keys clash with nothing: a parameter may be named schema or model_config.
        """
        from pydantic import ConfigDict
        from typing_extensions import NotRequired, Required, TypedDict

        make_type: Any = TypedDict  # mypy wants to know the keys
        arguments = make_type(
            "Arguments",
            {
                name: Required[annotation]
                if self.parameters[name].default is inspect.Parameter.empty
                else NotRequired[annotation]
                for name, annotation in self._annotations().items()
            },
        )
        arguments.__pydantic_config__ = ConfigDict(strict=True, extra="forbid", val_json_bytes="base64")
        return arguments

    @property
    def _globals(self) -> dict[str, Any]:
        return typing.cast("dict[str, Any]", inspect.unwrap(self.function).__globals__)

    def _annotations(self) -> dict[str, Any]:
        """Return the evaluated annotations of the parameters alone: the result's need not be importable."""

        def bare() -> None: ...

        bare.__annotations__ = {name: parameter.annotation for name, parameter in self.parameters.items()}
        return typing.get_type_hints(bare, globalns=self._globals, include_extras=True)
