"""What to write in place of `shared_task`, for the warning of each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from inspect import Parameter
from typing import Any, Final, get_origin

from lambda_tasks.contrib.celery.parameters import Parameters
from lambda_tasks.definition.hints import PAGE
from lambda_tasks.definition.retry import RetryPolicy

_SELF: Final = " In place of self, call current_task(), and raise RetryLater(delay=…) in place of self.retry()."


def advice(parameters: Parameters, options: Mapping[str, Any]) -> str:
    """Return the sentences of the warning, with the decorator and the parameters to write."""
    given = ", ".join(f"{name}={_shown(value)}" for name, value in options.items())
    decorator = f"@lambda_task({given})" if given else "@lambda_task"
    listed = ", ".join(map(_parameter, parameters.all))
    function = f"def {parameters.function.__name__}({f'*, {listed}' if listed else ''})"
    missing = any(each.annotation is Parameter.empty for each in parameters.all)
    return (
        f"{parameters.name} is defined with lambda_tasks.contrib.celery, for the first days after Celery. "
        f"Write {decorator} and {function}{', with a type in place of each …' if missing else ''}, and pass arguments "
        f"by name to execute_on_commit(…).{_SELF if parameters.is_bound else ''} See {PAGE}."
    )


def _parameter(parameter: Parameter) -> str:
    typed = "…" if parameter.annotation is Parameter.empty else _type(parameter.annotation)
    default = "" if parameter.default is Parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {typed}{default}"


def _type(annotation: object) -> str:
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, type) and get_origin(annotation) is None:  # in Python 3.10, list[int] is a type
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _shown(value: object) -> str:
    """Return the source text of an option."""
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))}{',' * (len(value) == 1)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_shown(key)}: {_shown(each)}' for key, each in value.items())}}}"
    if isinstance(value, RetryPolicy):
        changed = {
            each.name: getattr(value, each.name)
            for each in dataclasses.fields(value)
            if getattr(value, each.name) != each.default
        }
        return f"RetryPolicy({', '.join(f'{name}={_shown(each)}' for name, each in changed.items())})"
    return repr(value)
