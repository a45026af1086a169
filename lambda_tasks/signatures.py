"""What a task's function may look like, and how its arguments travel.

The rule: what is accepted at the call arrives equal in the worker. Arguments are checked strictly
against the annotations, written as JSON, read back as the worker will read them, and compared.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.exceptions import InvalidArguments, InvalidMessage

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_KINDS: Final[dict[Any, str]] = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
    inspect.Parameter.VAR_POSITIONAL: "variadic",
    inspect.Parameter.VAR_KEYWORD: "variadic",
}

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

    Raises TypeError for a function whose parameters cannot be arguments of a task.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise TypeError(f"@lambda_task decorates functions, not {function!r}.")
        self.function = function
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.parameters = read_signature(function).parameters
        for parameter in self.parameters.values():
            self._check(parameter)

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

        Raises `InvalidArguments` if they do not fit the annotations, or would not arrive equal.
        """
        from pydantic import ValidationError
        from pydantic_core import PydanticSerializationError, from_json

        try:
            accepted = self._adapter.validate_python(dict(arguments))
            text = self._adapter.dump_json(accepted, warnings="error")
            arrived = self._adapter.validate_json(text)
        except ValidationError as error:
            raise InvalidArguments(f"{self.name} cannot be called so: {_problems(error)}") from None
        except PydanticSerializationError as error:
            raise InvalidArguments(
                f"The arguments of {self.name} cannot be written as JSON: {error}. Send the primary key of what "
                "cannot travel, and look it up in the task."
            ) from None
        self._refuse_changed(accepted, arrived)
        if _ESCAPED_NUL.search(text):
            raise InvalidArguments(f"The arguments of {self.name} contain a NUL character, which databases refuse.")
        return from_json(text)  # type: ignore[no-any-return]

    def decode(self, encoded: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments as the function takes them.

        Raises `InvalidMessage` if they do not fit the annotations: the producer has another version
        of the task.
        """
        from pydantic import ValidationError
        from pydantic_core import to_json

        try:
            return self._adapter.validate_json(to_json(encoded))
        except ValidationError as error:
            raise InvalidMessage(f"The message does not fit {self.name}: {_problems(error)}") from None

    def _refuse_changed(self, accepted: Mapping[str, Any], arrived: Mapping[str, Any]) -> None:
        for name, value in accepted.items():
            if not _equal(value, arrived[name]):
                raise InvalidArguments(
                    f"Argument {name}={value!r} of {self.name} would arrive as {arrived[name]!r}. "
                    "Annotate it so that JSON can bring it back, or send its primary key."
                )

    @cached_property
    def _adapter(self) -> TypeAdapter[dict[str, Any]]:
        from pydantic import ConfigDict, TypeAdapter
        from pydantic.errors import PydanticUserError

        # A TypedDict, since its keys clash with nothing: a parameter may be named schema or model_config.
        from typing_extensions import NotRequired, Required, TypedDict

        items: Any = {
            name: Required[annotation]
            if self.parameters[name].default is inspect.Parameter.empty
            else NotRequired[annotation]
            for name, annotation in self._annotations().items()
        }
        typed_dict: Any = TypedDict  # a type made at run time, which no checker can follow
        arguments = typed_dict("Arguments", items)
        arguments.__pydantic_config__ = ConfigDict(
            strict=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64"
        )
        try:
            return TypeAdapter(arguments)
        except PydanticUserError as error:
            raise InvalidArguments(
                f"The annotations of {self.name} include a type that cannot travel as JSON: {error.message} "
                "Annotate the primary key of what you mean, and look it up in the task."
            ) from error

    def _annotations(self) -> dict[str, Any]:
        """Return the evaluated annotations of the parameters alone: the result's need not be importable."""

        def bare() -> None: ...

        bare.__annotations__ = {name: parameter.annotation for name, parameter in self.parameters.items()}
        unwrapped = inspect.unwrap(self.function)
        try:
            return typing.get_type_hints(bare, globalns=unwrapped.__globals__, include_extras=True)
        except NameError as error:
            raise InvalidArguments(
                f"An annotation of {self.name} cannot be evaluated: {error}. "
                "Import the name at the top of the module, not under TYPE_CHECKING."
            ) from error


def _equal(left: object, right: object) -> bool:
    try:
        return type(left) is type(right) and bool(left == right)
    except Exception:
        return False


def _problems(error: Any) -> str:
    """Say what pydantic found, without the input itself: it may be a secret, and it may be long."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'arguments'}: {problem['msg']}"
        for problem in error.errors(include_input=False, include_url=False)
    )
