"""Check the function of a task, and convert its arguments to JSON and back.

Arguments that the call accepts arrive equal in the worker. `TaskSignature` validates them strictly against the
annotations, writes them as JSON, reads the JSON as the worker will, and compares the result. The comparison includes
the types, since 1 == True and a string enum equals its string.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.exceptions import InvalidArguments

if TYPE_CHECKING:
    from lambda_tasks.definition.arguments import PlainArguments
    from lambda_tasks.definition.converting import Conversion
    from lambda_tasks.definition.returns import ReturnType

_KINDS: Final[dict[Any, str]] = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
    inspect.Parameter.VAR_POSITIONAL: "variadic",
    inspect.Parameter.VAR_KEYWORD: "variadic",
}

_KEYWORD_ONLY: Final = {
    "positional": "Put a * before the first parameter, as in def task(*, user_id: int).",
    "variadic": "Replace it with named parameters, as in def task(*, user_ids: list[int], options: dict[str, str]). "
    "If a decorator has hidden the parameters of the function, use functools.wraps() in that decorator.",
}


def read_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function, even if its annotations cannot be evaluated yet."""
    if sys.version_info >= (3, 14):  # evaluates annotations when they are read
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)


class TaskSignature:
    """The parameters of a task's function.

    The parameters are checked immediately, and the annotations are evaluated on first use. As a result, a process that
    only imports tasks does not import pydantic, and annotations can refer to names that are defined further down.

    For `sensitive` parameters, errors contain only the name.

    Raises TypeError if a task cannot have the function's parameters, and ValueError if a name in `sensitive` is not a
    parameter.
    """

    def __init__(self, function: Callable[..., Any], *, sensitive: Collection[str] = ()) -> None:
        # The annotations of builtins, classes and partials cannot be evaluated, since these have no `__globals__`.
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
                existing = ", ".join(self.parameters) or "none"
                raise ValueError(
                    f"sensitive must contain parameters of {self.name}, not {name!r}. Its parameters: {existing}."
                )

    def _check(self, parameter: inspect.Parameter) -> None:
        if parameter.kind is not parameter.KEYWORD_ONLY:
            kind = _KINDS[parameter.kind]
            raise TypeError(
                f"Parameter {parameter} of {self.name} must be keyword-only, not {kind}. {_KEYWORD_ONLY[kind]}"
            )
        if parameter.name.startswith("_"):
            raise TypeError(f"Parameter {parameter.name} of {self.name} must not start with an underscore. Rename it.")
        if parameter.annotation is inspect.Parameter.empty:
            raise TypeError(
                f"Parameter {parameter.name} of {self.name} must have an annotation, as in user_id: int. "
                "It determines which values can be sent."
            )

    def unknown(self, encoded: Mapping[str, Any]) -> set[str]:
        """Return the names of arguments in a message that the function does not take."""
        return encoded.keys() - self.parameters.keys()

    def check(self) -> None:
        """Evaluate the annotations now, and raise `InvalidArguments` if one cannot be used."""
        self._conversion.check()

    def encode(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return `arguments` as plain JSON values.

        Raises `InvalidArguments` if they do not match the annotations, or would not arrive equal. The error
        contains the name of the argument, its value and its type; only the name if the argument is sensitive.
        """
        return self._conversion.encode(arguments)

    def encode_without(self, arguments: Mapping[str, Any], later: Collection[str]) -> dict[str, Any]:
        """Return `arguments` as plain JSON values, as `encode()` does. Those in `later` get their values later.

        If all do, the annotations are not evaluated, so that a decorator can name a task.
        """
        given = {*arguments, *later}
        required = [name for name, each in self.parameters.items() if each.default is each.empty]
        unknown = [f"{name} is not a parameter" for name in later if name not in self.parameters]
        missing = [f"{name} is missing" for name in required if name not in given]
        if problems := unknown + ([] if arguments else missing):
            raise InvalidArguments(f"Invalid arguments for {self.name}: {'; '.join(problems)}.")
        if not arguments:
            return {}
        rest = TaskSignature.__new__(TaskSignature)
        rest.function, rest.name = self.function, self.name
        rest.parameters = types.MappingProxyType(
            {name: self.parameters[name] for name in self.parameters if name not in later}
        )
        rest.sensitive = [name for name in self.sensitive if name not in later]
        return rest.encode(arguments)

    def decode(self, encoded: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments as the function takes them.

        Raises `InvalidMessage` if they do not match the annotations: the producer has a different version
        of the task.
        """
        if self._plain is not None and (arguments := self._plain.read(encoded)) is not None:
            return arguments
        return self._conversion.decode(encoded)

    def encoded_default(self, name: str) -> Any:
        """Return the default of a parameter as the JSON value that would be sent for it."""
        default = self.parameters[name].default
        if default is None or type(default) in (bool, int, float, str):
            return default
        return self._conversion.encoded(name, default)

    @cached_property
    def returned(self) -> ReturnType:
        """The type of the results. Only processes that read results need it."""
        from lambda_tasks.definition.returns import ReturnType

        return ReturnType(read_signature(self.function).return_annotation, self._globals)

    @cached_property
    def _plain(self) -> PlainArguments | None:
        """The reader that does not need pydantic; None if an annotation is not one of JSON's own types."""
        from lambda_tasks.definition.arguments import PlainArguments, evaluated

        try:
            annotations = evaluated(self.parameters, self._globals)
        except Exception:
            return None  # pydantic reports the error
        required = {name for name, parameter in self.parameters.items() if parameter.default is parameter.empty}
        return PlainArguments.of(annotations, required=frozenset(required))

    @cached_property
    def _conversion(self) -> Conversion:
        """The conversion with pydantic. Most processes that import tasks do not need it."""
        from lambda_tasks.definition.converting import Conversion

        return Conversion(
            self.name,
            self.parameters,
            sensitive=self.sensitive,
            namespace=self._globals,
        )

    @property
    def _globals(self) -> dict[str, Any]:
        return typing.cast("dict[str, Any]", inspect.unwrap(self.function).__globals__)
