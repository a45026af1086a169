"""The parameters of a function as Celery's tasks have them, and the function that a worker calls in its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, Signature, iscoroutinefunction
from typing import Any, Final, Optional

from lambda_tasks.definition.hints import PAGE
from lambda_tasks.definition.signatures import read_signature
from lambda_tasks.exceptions import InvalidArguments, TaskCancelled

#: The argument, in addition to those of the function, with the time after which a call must not run.
EXPIRES: Final = "celery_expires"
_POSITIONAL: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


class Parameters:
    """The parameters of a task, without `self` if it is bound. Arguments are bound to their names.

    Raises TypeError for a function that cannot be a task.
    """

    def __init__(self, function: Callable[..., Any], *, is_bound: bool) -> None:
        self.function = function
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.is_bound = is_bound
        signature = read_signature(function)
        own = list(signature.parameters.values())
        if is_bound:
            if not own or own[0].kind not in _POSITIONAL:
                raise TypeError(f"{self.name} must have self as its first parameter, because bind is True.")
            del own[0]
        self._check(own)
        self._call = signature.replace(parameters=own)
        self._by_position = [each.name for each in own if each.kind is Parameter.POSITIONAL_ONLY]

    @property
    def all(self) -> Sequence[Parameter]:
        return list(self._call.parameters.values())

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by their names, or raise `InvalidArguments` if the function lacks them."""
        try:
            return dict(self._call.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise InvalidArguments(f"Invalid arguments for {self.name}: {error}.") from None

    def lambda_task_call(self, leading: Sequence[Any], arguments: Mapping[str, Any]) -> Any:
        """Call the function with `leading`, which is empty or `self`, and with arguments by their names.

        It is named like the hook, since `begin_at_task()` leaves out the frames before it.
        """
        by_name = dict(arguments)
        by_position = [by_name.pop(name) for name in self._by_position if name in by_name]
        return self.function(*leading, *by_position, **by_name)

    def keyword_only(self, run: Callable[[Mapping[str, Any]], Any]) -> Callable[..., Any]:
        """Return a function for `@lambda_task` that passes its arguments to `run`.

        Its parameters are keyword-only. Those without an annotation take any JSON value, and those with the default
        None also None.
        """

        @wraps(self.function)
        def adapted(**arguments: Any) -> Any:
            expires = arguments.pop(EXPIRES, None)
            if expires is not None and time.time() >= expires:
                raise TaskCancelled(f"{self.name} expired before a worker ran it.")
            return run(arguments)

        own = [_annotated(each) for each in self.all]
        expiry: Any = Optional[float]  # noqa: UP045, as in _annotated()
        own.append(Parameter(EXPIRES, Parameter.KEYWORD_ONLY, default=None, annotation=expiry))
        adapted.__signature__ = Signature(  # type: ignore[attr-defined]  # which inspect.signature() reads
            own, return_annotation=self._call.return_annotation
        )
        return adapted

    def _check(self, own: Sequence[Parameter]) -> None:
        if iscoroutinefunction(self.function):
            raise TypeError(f"{self.name} must not be an async function with shared_task. Use @lambda_task ({PAGE}).")
        for parameter in own:
            if parameter.name == EXPIRES:
                raise TypeError(
                    f"Parameter {EXPIRES} of {self.name} must have another name, since calls with expires use it."
                )
            if parameter.kind in _VARIADIC:
                raise TypeError(
                    f"Parameter {parameter} of {self.name} must not be variadic, since the arguments in a message have "
                    f"names. Replace it with named parameters ({PAGE})."
                )


def _annotated(parameter: Parameter) -> Parameter:
    annotation = parameter.annotation
    if annotation is Parameter.empty:
        annotation = Any
    elif parameter.default is None:
        annotation = Optional[annotation]  # noqa: UP045, since the annotation may be a string
    return parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=annotation)
