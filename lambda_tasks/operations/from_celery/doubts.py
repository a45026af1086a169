"""What in the body of a task means something else here, as far as the source text shows it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Final

from lambda_tasks.operations.from_celery.findings import Note, Parameter
from lambda_tasks.operations.from_celery.sources import Source

_Function = ast.FunctionDef | ast.AsyncFunctionDef
#: Methods of models, managers and querysets that write.
_WRITES: Final = frozenset(
    {"save", "asave", "create", "acreate", "delete", "adelete", "get_or_create", "update_or_create"}
    | {"bulk_create", "bulk_update"}
)
_SENDS: Final = frozenset({"delay", "apply_async"})


def doubts_about(node: _Function, parameters: Sequence[Parameter], source: Source) -> Iterator[Note]:
    """Yield notes about writes that are rolled back, waiting for tasks, and arguments that look like models."""
    yield from _lost_writes(node)
    yield from _waiting(node)
    for parameter in parameters:
        if is_model(parameter.annotation, source):
            yield Note(
                node.lineno,
                f"{parameter.name} looks like a model, {parameter.annotation}. Pass its primary key instead.",
            )


def looks_like_object(argument: ast.expr) -> bool:
    """Return whether an argument of a call is probably no JSON value: a request, an instance or a user."""
    if isinstance(argument, ast.Name):
        return argument.id in ("self", "instance", "request", "obj")
    return isinstance(argument, ast.Attribute) and ast.unparse(argument) in ("request.user", "self.request.user")


def _lost_writes(node: _Function) -> Iterator[Note]:
    """Yield a note for each `except` block that writes and then ends the run with an error or a retry."""
    for handler in _below(node):
        if isinstance(handler, ast.ExceptHandler) and _gives_up(handler.body):
            for line, method in sorted(filter(None, map(_written, _below(handler)))):
                yield Note(
                    line,
                    f"{method}() in the except block may be lost: a run is one transaction, which the error at its end "
                    "rolls back. Write in a task in on_failure, or use atomic=False.",
                )


def _gives_up(body: Sequence[ast.stmt]) -> bool:
    """Return whether a block ends with `raise`, or with a call of `self.retry()`."""
    last = body[-1]
    if isinstance(last, ast.Raise):
        return True
    if isinstance(last, ast.If):
        return _gives_up(last.body) or bool(last.orelse and _gives_up(last.orelse))
    if isinstance(last, ast.With | ast.AsyncWith):
        return _gives_up(last.body)
    if isinstance(last, ast.Try):
        return _gives_up(last.body) or any(_gives_up(handler.body) for handler in last.handlers)
    value = last.value if isinstance(last, ast.Expr | ast.Return) else None
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "retry"


def _written(node: ast.AST) -> tuple[int, str] | None:
    """Return the line and the method of a call that probably writes to the database."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return None
    method = node.func.attr
    # QuerySet.update() takes keywords only, and dict.update() seldom does.
    is_update = method in ("update", "aupdate") and bool(node.keywords) and not node.args
    return (node.lineno, method) if method in _WRITES or is_update else None


def _waiting(node: _Function) -> Iterator[Note]:
    for call in _below(node):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "get"):
            continue
        sent = call.func.value
        if isinstance(sent, ast.Call) and isinstance(sent.func, ast.Attribute) and sent.func.attr in _SENDS:
            yield Note(
                call.lineno,
                "The task waits for another one, which starts only after its COMMIT. Send the next step with "
                "on_success, a chain or a group.",
            )


def is_model(annotation: str, source: Source) -> bool:
    """Return whether an annotation is probably a model: a name that comes from a module `models`."""
    name = annotation.strip("'\"").partition(" | ")[0].removeprefix("Optional[").rstrip("]")
    module, _, _ = source.imports.get(name, "").rpartition(".")
    return module.rpartition(".")[2] == "models"


def _below(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes in a function or a block, without those of functions and classes inside it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function | ast.ClassDef | ast.Lambda):
            continue
        yield child
        yield from _below(child)
