"""Find the tasks of a code base, with their options and what needs a decision."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, Final

from lambda_tasks.definition import hints
from lambda_tasks.operations.from_celery.doubts import doubts_about
from lambda_tasks.operations.from_celery.findings import Fate, FoundTask, Note, Parameter, Use
from lambda_tasks.operations.from_celery.sources import Source

_Function = ast.FunctionDef | ast.AsyncFunctionDef
#: A value that is known only when the code runs.
UNKNOWN: Final = object()
#: Decorators of Celery, by the ends of their dotted paths.
_DECORATORS: Final = ("celery.shared_task", "celery.task", "celery.decorators.task", "celery.task.task")
_PERIODIC: Final = ("celery.task.periodic_task", "celery.decorators.periodic_task")
_BASES: Final = ("celery.Task", "celery.app.task.Task", "celery.task.Task", "celery.task.base.Task")


def tasks_in(source: Source) -> Iterator[FoundTask]:
    """Yield the tasks that a file defines."""
    apps = _apps(source)
    for node in ast.walk(source.tree):
        if isinstance(node, _Function):
            for decorator in node.decorator_list:
                if (keywords := _task_keywords(decorator, source, apps)) is not None:
                    yield _task(node, keywords, source)
                    break
        elif isinstance(node, ast.ClassDef) and any(source.origin(base) in _BASES for base in node.bases):
            yield _class_task(node, source)


def options_of(keywords: list[ast.keyword], *, calls: bool = False) -> tuple[Use, ...]:
    """Return the options of a decorator, or with `calls` those of `apply_async()`."""
    return tuple(_option(keyword, calls=calls) for keyword in keywords)


def literal(node: ast.expr) -> Any:
    """Return the value of a literal, or `UNKNOWN`."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN


def _apps(source: Source) -> set[str]:
    """Return the names that an app of Celery has in a file."""
    made = {
        target.id
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        if source.origin(node.value.func).endswith(("celery.Celery", "celery.app.Celery"))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    # By convention, the module of the app, or the app itself, has celery in its name.
    return made | {name for name, path in source.imports.items() if "celery" in path.lower()}


def _task_keywords(decorator: ast.expr, source: Source, apps: set[str]) -> list[ast.keyword] | None:
    """Return the keywords of a decorator that makes a task; None for another decorator."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    path = source.origin(called)
    is_task = path in (*_DECORATORS, *_PERIODIC) or (
        isinstance(called, ast.Attribute)
        and called.attr in ("task", "shared_task")
        and isinstance(called.value, ast.Name)
        and called.value.id in apps
    )
    if not is_task:
        return None
    return decorator.keywords if isinstance(decorator, ast.Call) else []


def _task(node: _Function, keywords: list[ast.keyword], source: Source) -> FoundTask:
    options = options_of(keywords)
    is_bound = any(keyword.arg == "bind" and literal(keyword.value) is True for keyword in keywords)
    parameters, own_name = _parameters(node, is_bound=is_bound)
    attributes = tuple(_attributes(node, own_name)) if is_bound else ()
    variadic = [each.name for each in parameters if each.is_variadic]
    is_async = isinstance(node, ast.AsyncFunctionDef)
    refused = any(use.fate in ("refused", "unknown") for use in (*options, *attributes))
    return FoundTask(
        name=node.name,
        file=source.file,
        line=node.lineno,
        parameters=parameters,
        options=options,
        attributes=attributes,
        notes=(*_about_parameters(node, parameters), *doubts_about(node, parameters, source)),
        runs_unchanged=not (refused or variadic or is_async),
    )


def _class_task(node: ast.ClassDef, source: Source) -> FoundTask:
    note = Note(node.lineno, f"The task is a class. Make its run() a function; {hints.OPTIONS['base']}.")
    return FoundTask(node.name, source.file, node.lineno, notes=(note,), runs_unchanged=False)


def _option(keyword: ast.keyword, *, calls: bool) -> Use:
    if keyword.arg is None:
        text = "the options are in a variable: look at each of them"
        return Use("**", ast.unparse(keyword.value), "unknown", text, keyword.value.lineno)
    name, value = keyword.arg, literal(keyword.value)
    fate: Fate
    if calls:
        instead = hints.CALL_KEYWORDS.get(name) or hints.CALL_OPTIONS.get(name)
        fate = hints.fate_of_call(name, value)
    else:
        instead = hints.OPTIONS.get(name) or hints.SHARED_OPTIONS.get(name)
        fate = hints.fate_of_option(name, value)
    if value is UNKNOWN and name in (hints.DROPPED_CALLS if calls else hints.DROPPED_OPTIONS):
        fate = "dropped"
    if instead is None:
        fate, instead = "unknown", "it is not an option that Celery documents"
    return Use(name, ast.unparse(keyword.value), fate, instead, keyword.value.lineno)


def _parameters(node: _Function, *, is_bound: bool) -> tuple[tuple[Parameter, ...], str]:
    """Return the parameters without `self`, and the name of `self`."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    own_name = positional.pop(0).arg if is_bound and positional else ""
    found = [Parameter(each.arg, _source(each.annotation)) for each in positional]
    if arguments.vararg:
        found.append(Parameter(f"*{arguments.vararg.arg}", _source(arguments.vararg.annotation), is_variadic=True))
    found += [Parameter(each.arg, _source(each.annotation), is_positional=False) for each in arguments.kwonlyargs]
    if arguments.kwarg:
        found.append(Parameter(f"**{arguments.kwarg.arg}", _source(arguments.kwarg.annotation), is_variadic=True))
    return tuple(found), own_name


def _source(node: ast.expr | None) -> str:
    return "" if node is None else ast.unparse(node)


def _attributes(node: _Function, own_name: str) -> Iterator[Use]:
    """Yield what a bound task uses of `self`, each attribute once."""
    seen: set[str] = set()
    for child in ast.walk(node):
        if not (isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name) and child.value.id == own_name):
            continue
        name = child.attr
        if name in seen or name in ("name", "max_retries", "default_retry_delay", "MaxRetriesExceededError"):
            continue
        seen.add(name)
        instead = hints.ATTRIBUTES.get(name) or _METHODS.get(name) or "it is not an attribute that Celery documents"
        fate: Fate = "carried" if name in hints.CARRIED_ATTRIBUTES else "refused"
        yield Use(f"{own_name}.{name}", "", fate, instead, child.lineno)


#: Attributes of `self` that are answered elsewhere, since they exist on tasks here.
_METHODS: Final = {
    "retry": "raise RetryLater(delay=…)",
    "delay": "call execute_on_commit(…) of the task",
    "replace": "send the other task with execute_on_commit(…), or use a chain",
}


def _about_parameters(node: _Function, parameters: tuple[Parameter, ...]) -> Iterator[Note]:
    variadic = [each.name for each in parameters if each.is_variadic]
    positional = [each.name for each in parameters if each.is_positional and not each.is_variadic]
    untyped = [each.name for each in parameters if not each.annotation and not each.is_variadic]
    if variadic:
        yield Note(node.lineno, f"Replace {', '.join(variadic)} by named parameters.")
    if positional:
        yield Note(node.lineno, f"Put a * before {positional[0]}, so that arguments are passed by name.")
    if untyped:
        yield Note(node.lineno, f"Annotate {', '.join(untyped)}.")
    if isinstance(node, ast.AsyncFunctionDef):
        yield Note(node.lineno, "The function is async. Use @lambda_task, which runs coroutines.")
