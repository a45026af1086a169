"""The arguments of a call: by name in the message, and for the function as the caller has passed them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from inspect import Parameter
from types import MappingProxyType
from typing import Any, Final

from lambda_tasks.contrib.django_tasks.compat import normalize_json
from lambda_tasks.definition.signatures import TaskSignature, read_signature
from lambda_tasks.exceptions import InvalidArguments, InvalidMessage
from lambda_tasks.recording.storable import unstorable

#: The key, which cannot be the name of a parameter, of what a message needs to know in addition to the arguments.
CALL: Final = "*"
#: In `CALL`, the number of arguments that were passed by position.
POSITIONAL: Final = "positional"
#: In `CALL`, the alias in TASKS of the backend, unless it is `default`.
BACKEND: Final = "backend"

_VARIADIC: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


class CallSignature(TaskSignature):
    """The parameters of a function with `@task`, which may have any form and need no annotations.

    A message contains the arguments by name, as that of a function with `@lambda_task` does. So locks, unique keys and
    `sensitive` work by name. What the caller has passed by position is passed by position again.
    """

    def __init__(
        self, function: Callable[..., Any], *, sensitive: Collection[str], takes_context: bool, backend: str
    ) -> None:
        self.function = function
        self._backend = backend
        self.name = f"{function.__module__}.{function.__qualname__}"
        signature = read_signature(function)
        own = list(signature.parameters.values())[1 if takes_context else 0 :]
        self._call = signature.replace(parameters=own, return_annotation=signature.empty)
        self.parameters = MappingProxyType({each.name: each for each in own if each.kind not in _VARIADIC})
        self._takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in own)
        self._rest = next((each.name for each in own if each.kind is Parameter.VAR_POSITIONAL), None)
        self.sensitive = sensitive
        for name in sensitive:
            if name not in self._call.parameters:
                existing = ", ".join(self._call.parameters) or "none"
                raise ValueError(
                    f"sensitive must contain parameters of {self.name}, not {name!r}. Its parameters: {existing}."
                )

    def check(self) -> None:
        """Do nothing: the annotations of the function do not matter."""

    def unknown(self, encoded: Mapping[str, Any]) -> set[str]:
        known = {*self.parameters, CALL} | ({self._rest} if self._rest else set())
        return set() if self._takes_any else encoded.keys() - known

    def encode(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a message that no caller has enqueued, such as that of a schedule."""
        return self.encode_call((), arguments, backend=self._backend)

    def encode_call(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, backend: str) -> dict[str, Any]:
        """Return the arguments of a message for a call with JSON values.

        Raises `InvalidArguments` if the function does not take the arguments, or if JSON would change them.
        """
        try:
            bound = self._call.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InvalidArguments(f"Invalid arguments for {self.name}: {error}.") from None
        encoded: dict[str, Any] = {}
        for name, value in bound.items():
            if self._call.parameters[name].kind is Parameter.VAR_KEYWORD:
                self._add_others(encoded, value)
            else:
                encoded[name] = list(value) if name == self._rest else value
        about = ({POSITIONAL: len(args)} if args else {}) | ({BACKEND: backend} if backend != "default" else {})
        return self._as_json(encoded | ({CALL: about} if about else {}))

    def decode(self, encoded: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of the arguments of a message, for `passed()`; raise `InvalidMessage` if they do not fit."""
        args, kwargs = self.passed(encoded)
        try:
            self._call.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidMessage(f"The arguments in the message do not match {self.name}: {error}") from None
        return deepcopy(dict(encoded))

    def passed(self, encoded: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of a message as they were passed: by position, and by name."""
        named = {name: value for name, value in encoded.items() if name != CALL}
        count = about_call(encoded).get(POSITIONAL, 0)
        positional: list[Any] = []
        for parameter in self._call.parameters.values():
            if parameter.kind is Parameter.VAR_POSITIONAL:
                rest = named.pop(parameter.name, [])
                positional.extend(rest if isinstance(rest, list) else [rest])  # a masked one is a string
            elif len(positional) < count and parameter.name in named:
                positional.append(named.pop(parameter.name))
        return positional, named

    def encoded_default(self, name: str) -> Any:
        return normalize_json(self.parameters[name].default)

    def _add_others(self, encoded: dict[str, Any], others: Mapping[str, Any]) -> None:
        for name, value in others.items():
            if name == CALL or name in self._call.parameters:
                raise InvalidArguments(
                    f"{self.name} must not be called with a keyword {name!r}, which is the name of another of its "
                    "parameters. Rename one of them."
                )
            encoded[name] = value

    def _as_json(self, encoded: dict[str, Any]) -> dict[str, Any]:
        for name, value in encoded.items():
            if problem := unstorable({name: value}, uncounted=1):
                raise InvalidArguments(f"Argument {name} of {self.name} {problem}.")
            if json.loads(json.dumps(value)) != value:
                raise InvalidArguments(
                    f"Argument {name} of {self.name} contains a dict whose keys are not strings, which JSON cannot "
                    "represent. Convert the keys to strings."
                )
        return encoded


def about_call(encoded: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a message says about the call, apart from its arguments; empty if that is invalid."""
    about = encoded.get(CALL)
    return about if isinstance(about, dict) and type(about.get(POSITIONAL, 0)) is int else {}
