"""Write a call as it is with `@lambda_task`, as far as the source text shows its arguments."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Final

from lambda_tasks.operations.from_celery.findings import FoundTask

#: Methods that take the arguments of the task in `args` and `kwargs`.
LISTED: Final = frozenset({"apply_async", "apply_async_on_commit"})
#: Methods that take the arguments of the task as their own, and send it.
PLAIN: Final = frozenset({"delay", "delay_on_commit"})
#: Methods that take the arguments of the task as their own, and return a signature.
SIGNATURES: Final = frozenset({"s", "si"})
#: Options of `apply_async()` that are options of `using()`.
_OPTIONS: Final = {"countdown": "delay", "queue": "queue"}

_Named = list[tuple[str, ast.expr]]


def code_of(call: ast.Call, method: str, receiver: str, task: FoundTask, *, takes_result: bool) -> str | None:
    """Return the code of a call; None if a person has to write it.

    With `takes_result`, the result of the task before is its first argument, unless the signature is immutable.
    """
    options: list[str] = []
    if method in LISTED:
        given = {each.arg: each.value for each in call.keywords}
        if None in given or given.keys() - {"args", "kwargs", *_OPTIONS} or len(call.args) > 2:
            return None
        options = [f"{ours}={ast.unparse(given[theirs])}" for theirs, ours in _OPTIONS.items() if theirs in given]
        passed: list[ast.expr | None] = [*call.args, *map(given.get, ("args", "kwargs")[len(call.args) :])]
        by_position, by_name = _items(passed[0]), _entries(passed[1])
    elif method in PLAIN | SIGNATURES:
        by_position, by_name = list(call.args), _keywords(call)
    else:
        return None
    if by_position is None or by_name is None:
        return None
    if takes_result and method == "s":
        by_position.insert(0, ast.Name("RESULT"))
    arguments = _arguments(by_position, by_name, task)
    if arguments is None:
        return None
    using = f".using({', '.join(options)})" if options else ""
    return f"{receiver}{using}.{'invocation' if method in SIGNATURES else 'execute_on_commit'}({arguments})"


def _items(node: ast.expr | None) -> list[ast.expr] | None:
    """Return the expressions in `args`; None if it is neither a list nor a tuple."""
    if node is None or (isinstance(node, ast.Constant) and node.value is None):
        return []
    return list(node.elts) if isinstance(node, ast.List | ast.Tuple) else None


def _entries(node: ast.expr | None) -> _Named | None:
    """Return the names and the expressions in `kwargs`; None if it is not a dict whose keys are visible."""
    if node is None or (isinstance(node, ast.Constant) and node.value is None):
        return []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return _keywords(node)
    if not isinstance(node, ast.Dict):
        return None
    found = [
        (key.value, value)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    ]
    return found if len(found) == len(node.keys) else None


def _keywords(call: ast.Call) -> _Named | None:
    found = [(each.arg, each.value) for each in call.keywords if each.arg is not None]
    return found if len(found) == len(call.keywords) else None


def _arguments(by_position: Sequence[ast.expr], by_name: _Named, task: FoundTask) -> str | None:
    names = [each.name for each in task.parameters if each.is_positional and not each.is_variadic]
    if len(by_position) > len(names) or any(isinstance(each, ast.Starred) for each in by_position):
        return None
    named = [*zip(names, by_position, strict=False), *by_name]
    given = {name for name, _ in named}
    if any(each.is_required and each.name not in given for each in task.parameters):
        return None  # such as a signature whose first argument is the result of another task
    return ", ".join(f"{name}={ast.unparse(value)}" for name, value in named)
