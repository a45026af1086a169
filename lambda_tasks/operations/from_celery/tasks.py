"""Find the tasks of a code base, with their options and what needs a decision."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from operator import add, mul, sub
from typing import Any, Final

from lambda_tasks.definition import hints
from lambda_tasks.operations.from_celery.doubts import doubts_about, is_model
from lambda_tasks.operations.from_celery.findings import Fate, FoundTask, Note, Parameter, Use
from lambda_tasks.operations.from_celery.sources import Source

_Function = ast.FunctionDef | ast.AsyncFunctionDef
#: A value that is known only when the code runs.
UNKNOWN: Final = object()
#: How numbers of seconds are written.
_OPERATORS: Final[dict[type[ast.operator], Any]] = {ast.Mult: mul, ast.Add: add, ast.Sub: sub}
_MOST: Final = 10**9
#: Decorators of Celery, by the ends of their dotted paths.
_DECORATORS: Final = ("celery.shared_task", "celery.task", "celery.decorators.task", "celery.task.task")
_PERIODIC: Final = ("celery.task.periodic_task", "celery.decorators.periodic_task")
_BASES: Final = ("celery.Task", "celery.app.task.Task", "celery.task.Task", "celery.task.base.Task")


def makes_app(source: Source) -> bool:
    """Return whether a file creates an app of Celery."""
    return any(
        isinstance(node, ast.Call) and source.origin(node.func) in ("celery.Celery", "celery.app.Celery")
        for node in source.nodes
    )


def tasks_in(source: Source, app_modules: Collection[str]) -> Iterator[FoundTask]:
    """Yield the tasks that a file defines. `app_modules` are the modules that create an app of Celery."""
    apps = _apps(source, app_modules)
    for node in source.nodes:
        if isinstance(node, _Function):
            for decorator in node.decorator_list:
                if (keywords := _task_keywords(decorator, source, apps)) is not None:
                    yield _task(node, decorator, keywords, source)
                    break
        elif isinstance(node, ast.ClassDef) and any(source.origin(base) in _BASES for base in node.bases):
            yield _class_task(node, source)


def options_of(keywords: list[ast.keyword], *, calls: bool = False) -> tuple[Use, ...]:
    """Return the options of a decorator, or with `calls` those of `apply_async()`."""
    return tuple(_option(keyword, calls=calls) for keyword in keywords)


def literal(node: ast.expr) -> Any:
    """Return the value of a literal, such as 60 * 60, or `UNKNOWN`."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = literal(node.left), literal(node.right)
        numbers = all(isinstance(each, int | float) and abs(each) < _MOST for each in (left, right))
        return _OPERATORS[type(node.op)](left, right) if numbers else UNKNOWN
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN


def _apps(source: Source, app_modules: Collection[str]) -> set[str]:
    """Return the names that an app of Celery may have in a file: those that come from the module of an app."""
    imported = {
        name
        for name, path in source.imports.items()
        # By convention, the module of the app, or the app itself, has celery in its name.
        if "celery" in path.lower() or _is_one_of(path.rpartition(".")[0], app_modules)
    }
    return imported | ({"app", "application"} if source.module in app_modules else set())


def _is_one_of(module: str, modules: Collection[str]) -> bool:
    """Return whether a module, as an import names it, is one of those whose paths begin at the code base."""
    name = module.lstrip(".")
    return any(name == each or name.endswith(f".{each}") or each.endswith(f".{name}") for each in modules if name)


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


def _task(node: _Function, decorator: ast.expr, keywords: list[ast.keyword], source: Source) -> FoundTask:
    options = options_of(keywords)
    is_bound = any(keyword.arg == "bind" and literal(keyword.value) is True for keyword in keywords)
    parameters, own_name = _parameters(node, is_bound=is_bound)
    attributes = tuple(_attributes(node, own_name, {use.name for use in options})) if is_bound else ()
    variadic = [each.name for each in parameters if each.is_variadic]
    models = [each.name for each in parameters if is_model(each.annotation, source)]
    is_async = isinstance(node, ast.AsyncFunctionDef)
    refused = any(use.fate in ("refused", "unknown") for use in (*options, *attributes))
    return FoundTask(
        name=node.name,
        file=source.file,
        line=node.lineno,
        parameters=parameters,
        options=options,
        attributes=attributes,
        notes=(
            *_about_decorator(decorator),
            *_about_parameters(node, parameters),
            *doubts_about(node, parameters, source),
        ),
        runs_unchanged=not (refused or variadic or is_async or models),
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
    required = len(positional) - len(arguments.defaults)
    found = [
        Parameter(each.arg, _source(each.annotation), is_required=place < required)
        for place, each in enumerate(positional)
    ]
    if arguments.vararg:
        found.append(Parameter(f"*{arguments.vararg.arg}", _source(arguments.vararg.annotation), is_variadic=True))
    found += [
        Parameter(each.arg, _source(each.annotation), is_positional=False, is_required=default is None)
        for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        found.append(Parameter(f"**{arguments.kwarg.arg}", _source(arguments.kwarg.annotation), is_variadic=True))
    return tuple(found), own_name


def _source(node: ast.expr | None) -> str:
    return "" if node is None else ast.unparse(node)


def _attributes(node: _Function, own_name: str, options: Collection[str]) -> Iterator[Use]:
    """Yield what a bound task uses of `self` and of `self.request`, each attribute once."""
    seen: set[str] = set()
    for child in ast.walk(node):
        path = ast.unparse(child) if isinstance(child, ast.Attribute) else ""
        owner, _, name = path.rpartition(".")
        if owner not in (own_name, f"{own_name}.request") or path in seen:
            continue
        seen.add(path)
        if owner == own_name and name == "request":
            continue  # its attributes follow
        known = hints.CARRIED_ATTRIBUTES | set(options) if owner == own_name else hints.CARRIED_REQUEST
        instead = _METHODS.get(name) or hints.ATTRIBUTES.get(name)
        if owner != own_name:
            instead = hints.ATTRIBUTES["request"]
        elif name in options:
            instead = "write the value of the option"
        fate: Fate = "carried" if name in known else "refused"
        yield Use(path, "", fate, instead or "it has no counterpart", child.lineno)  # type: ignore[attr-defined]


#: Attributes of `self` that are answered elsewhere, since they exist on tasks here.
_METHODS: Final = {
    "retry": "raise RetryLater(delay=…)",
    "delay": "call execute_on_commit(…) of the task",
    "name": "read current_task().task_name",
    "max_retries": "read current_task().is_last_attempt",
    "default_retry_delay": "leave out the delay of RetryLater",
    "MaxRetriesExceededError": "read current_task().is_last_attempt before raising RetryLater",
    "replace": "send the other task with execute_on_commit(…), or use a chain",
}


def _about_decorator(decorator: ast.expr) -> Iterator[Note]:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(called, ast.Attribute) and called.attr != "shared_task":
        text = f"Replace @{ast.unparse(called)} by @lambda_task, or first by @shared_task: there is no app."
        yield Note(decorator.lineno, text)


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
