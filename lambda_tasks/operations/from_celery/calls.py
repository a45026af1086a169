"""Find the places where tasks are sent, and say what to write there."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Final

from lambda_tasks.definition import hints
from lambda_tasks.operations.from_celery.doubts import looks_like_object
from lambda_tasks.operations.from_celery.findings import Call, Fate, FoundTask, Note, Use
from lambda_tasks.operations.from_celery.rewriting import LISTED, code_of
from lambda_tasks.operations.from_celery.sources import Source
from lambda_tasks.operations.from_celery.tasks import options_of

#: Methods that only Celery's tasks have, so that their receiver is one.
_SURE: Final = frozenset({"apply_async", "delay_on_commit", "apply_async_on_commit", "send_task"})
#: Methods that other objects have too: they count if the receiver is a known task, or comes from a `tasks` module.
_LIKELY: Final = frozenset(
    {"delay", "s", "si", "subtask", "signature", "map", "starmap", "chunks", "apply", "AsyncResult"}
)
#: The modules of the functions that are imported from Celery.
_CELERY: Final = "celery"


def calls_in(source: Source, known: Mapping[str, FoundTask]) -> Iterator[Call]:
    """Yield the calls of a file. `known` has the tasks of the code base by the names of their functions."""
    committed, later = _lambdas_on_commit(source), _later_in_chains(source)
    for node in source.nodes:
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute):
            found = _method(node, node.func, source, known, takes_result=node in later)
        else:
            found = _function(node, source)
        if found is not None:
            yield _with_notes(found, node, is_on_commit=node in committed)


def _method(
    node: ast.Call, called: ast.Attribute, source: Source, known: Mapping[str, FoundTask], *, takes_result: bool
) -> Call | None:
    method = called.attr
    if method == "revoke" and ast.unparse(called.value).endswith("control"):
        return Call(source.file, node.lineno, "revoke", "", "refused", "call handle.cancel()")
    if method == "send_task":
        sent = ast.unparse(node.args[0]) if node.args else ""
        return Call(source.file, node.lineno, method, sent, "refused", hints.NAMES["send_task"])
    if method not in _SURE | _LIKELY:
        return None
    receiver = source.origin(called.value)
    task = known.get(receiver.rpartition(".")[2])
    if task is None and not (method in _SURE or (method == "delay" and _from_tasks(receiver))):
        return None
    return _sent(node, called, task, source, takes_result=takes_result)


def _sent(node: ast.Call, called: ast.Attribute, task: FoundTask | None, source: Source, *, takes_result: bool) -> Call:
    method, receiver = called.attr, ast.unparse(called.value)
    options: tuple[Use, ...] = ()
    if method in LISTED:
        options = options_of([each for each in node.keywords if each.arg not in ("args", "kwargs")], calls=True)
    refused = any(use.fate in ("refused", "unknown") for use in options) or method not in hints.CARRIED_ATTRIBUTES
    refused = refused or (task is not None and not task.runs_unchanged) or _is_chord(called.value, source)
    code = None if task is None else code_of(node, method, receiver, task, takes_result=takes_result)
    on_value = "call its execute_on_commit()" if isinstance(called.value, ast.Call) else None
    write = code or on_value or hints.ATTRIBUTES.get(method) or hints.NAMES.get(method) or "call execute_on_commit(…)"
    return Call(source.file, node.lineno, method, receiver, "refused" if refused else "carried", write, options)


def _is_chord(receiver: ast.expr, source: Source) -> bool:
    return any(
        isinstance(node, ast.Call) and source.origin(node.func).rpartition(".")[2] in ("chord", "on_error")
        for node in ast.walk(receiver)
    )


def _function(node: ast.Call, source: Source) -> Call | None:
    path = source.origin(node.func)
    module, _, name = path.rpartition(".")
    if module.partition(".")[0] != _CELERY or name not in (
        "chain",
        "group",
        "chord",
        "signature",
        "subtask",
        "AsyncResult",
    ):
        return None
    fate: Fate = "carried" if name in hints.CARRIED_NAMES else "refused"
    return Call(source.file, node.lineno, name, "", fate, hints.NAMES[name])


def _from_tasks(path: str) -> bool:
    """Return whether a dotted path leads through a module of tasks."""
    return any(part in ("tasks", "task") or part.endswith("_tasks") for part in path.split(".")[:-1])


def _with_notes(call: Call, node: ast.Call, *, is_on_commit: bool) -> Call:
    notes = [
        Note(argument.lineno, f"{ast.unparse(argument)} looks like an object. Pass its primary key instead.")
        for argument in _arguments(node)
        if looks_like_object(argument)
    ]
    if is_on_commit:
        notes.append(Note(node.lineno, "on_commit() around it is not needed: the message leaves on COMMIT."))
    if not notes:
        return call
    return Call(call.file, call.line, call.kind, call.task, call.fate, call.write, call.options, tuple(notes))


def _arguments(node: ast.Call) -> Iterator[ast.expr]:
    """Yield the arguments of a task's call, also those in lists and dicts."""
    for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
        if isinstance(argument, ast.List | ast.Tuple):
            yield from argument.elts
        elif isinstance(argument, ast.Dict):
            yield from argument.values
        else:
            yield argument


def _lambdas_on_commit(source: Source) -> set[ast.AST]:
    """Return the calls in the functions that are given to `transaction.on_commit()`."""
    return {
        inner
        for call in source.nodes
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name | ast.Attribute)
        if (call.func.id if isinstance(call.func, ast.Name) else call.func.attr) == "on_commit"
        for argument in call.args
        for inner in ast.walk(argument)
        if isinstance(argument, ast.Lambda)
    }


def _later_in_chains(source: Source) -> set[ast.expr]:
    """Return the expressions that follow another one in a chain, and take its result."""
    later: set[ast.expr] = set()
    for node in source.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            later.add(node.right)
        elif isinstance(node, ast.Call) and source.origin(node.func) == "celery.chain":
            only = node.args[0] if len(node.args) == 1 else None
            later.update((only.elts if isinstance(only, ast.List | ast.Tuple) else node.args)[1:])
    return later
