"""Load the plugins in LAMBDA_TASKS_PLUGINS on first use, and call their hooks."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

import pluggy
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.foundation.forks import ForkSafeLock
from lambda_tasks.hookspecs import LISTENERS, PROJECT, QUESTIONS, Hooks
from lambda_tasks.recording.described import described
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.settings import PREFIX, app_settings

if TYPE_CHECKING:
    from lambda_tasks.jobs import Run

logger = get_logger("lambda_tasks.plugins")

#: The plugin with the library's default behaviour, which applies if no other plugin returns a value.
DEFAULT_PLUGIN: Final = "lambda_tasks.execution.default_plugin"

#: The plugin for LAMBDA_TASKS_CONTEXT, which is the outermost one, so that the others have the context.
CONTEXT_PLUGIN: Final = "lambda_tasks.contrib.context.ContextPlugin"

manager = pluggy.PluginManager(PROJECT)
manager.add_hookspecs(Hooks)

_relay: Final = cast(Hooks, manager.hook)
_loading = ForkSafeLock()
_loaded = False
#: The dotted paths of plugins that parts of the library have added because the project uses these parts.
_added: list[str] = []


def hooks() -> Hooks:
    """Return the object on which all hooks are called, after loading the plugins."""
    if not _loaded:
        load_plugins()
    return _relay


def load_plugins() -> None:
    """Register the default plugin and those in LAMBDA_TASKS_PLUGINS, which are called in their order.

    With LAMBDA_TASKS_CONTEXT, its plugin comes before them.

    Raises `InvalidSetting` for a plugin that cannot be imported or does not implement a hook, for a hook that does not
    exist (a misspelt name), for an argument that a hook does not have, and for a wrapper around a hook that cannot be
    wrapped.
    """
    global _loaded
    with _loading:
        if _loaded:
            return
        _unregister_all()  # another thread may have loaded some of them before this process was forked
        try:
            for path in (DEFAULT_PLUGIN, *_added):
                manager.register(_imported(path), name=path)
            # pluggy calls the latest plugin first. In the setting, as in MIDDLEWARE, the first plugin is the outermost.
            for plugin in reversed(app_settings.plugins):
                _register(plugin)
            if paths := app_settings.context:
                manager.register(_imported(CONTEXT_PLUGIN)(paths), name=CONTEXT_PLUGIN)
            _check_hooks()
        except BaseException:
            _unregister_all()
            raise
        _loaded = True


def add_plugin(path: str) -> None:
    """Load the plugin at a dotted path in addition to those of the setting.

    For parts of the library that a project uses without naming a plugin. Adding a plugin again does nothing.
    """
    with _loading:
        if path in _added:
            return
        _added.append(path)
        if _loaded:  # a task's module may be the first that uses this part, in the middle of a run
            manager.register(_imported(path), name=path)


def _register(plugin: Any) -> None:
    try:
        found = _imported(plugin) if isinstance(plugin, str) else plugin
        registered = found() if isinstance(found, type) else found  # instantiate a class
        manager.register(registered)
        if not manager.get_hookcallers(registered):
            raise ValueError(f"it does not implement a hook; {_remedy_without_hooks(found)}")
    except Exception as error:  # its module or its class can raise any exception
        if isinstance(plugin, str) and described(plugin) != repr(plugin):  # the error would quote it
            raise InvalidSetting(f"LAMBDA_TASKS_PLUGINS must name plugins, not {described(plugin)}.") from None
        raise InvalidSetting(
            f"LAMBDA_TASKS_PLUGINS contains {described(plugin)}, which cannot be used: {error}"
        ) from error


def _remedy_without_hooks(found: Any) -> str:
    """Return what to do about a plugin without hooks: its module may have a class that implements them."""
    if isinstance(found, ModuleType):
        for name, value in vars(found).items():
            if isinstance(value, type) and any(map(_is_marked, vars(value).values())):
                return f"name its class, as in {found.__name__}.{name}"
    return "mark its functions with @hookimpl"


def _is_marked(value: object) -> bool:
    return hasattr(value, f"{PROJECT}_impl")


def _imported(path: str) -> Any:
    """Import the module, or the object in a module, that `path` names."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        return import_string(path)


def _check_hooks() -> None:
    """Raise `InvalidSetting` for hooks that do not exist, and for wrappers of listeners and questions."""
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise InvalidSetting(
            f"A plugin in LAMBDA_TASKS_PLUGINS implements a hook that does not exist: {error} "
            f"The hooks are: {', '.join(name for name in vars(Hooks) if name.startswith('lambda_task_'))}."
        ) from error
    for name in LISTENERS | QUESTIONS:
        for implementation in getattr(manager.hook, name).get_hookimpls():
            if implementation.wrapper or implementation.hookwrapper:
                raise InvalidSetting(
                    f"{implementation.plugin_name} must not wrap {name}, since there is nothing to wrap. Write "
                    "it as a plain function, or wrap lambda_task_call."
                )


def _unregister_all() -> None:
    for _, plugin in manager.list_name_plugin():
        if plugin is not None:
            manager.unregister(plugin)


def first(hook: Any, **details: Any) -> Any:
    """Call a hook whose first value counts. If only the default plugin implements it, do so without pluggy."""
    implementations = hook.get_hookimpls()
    if len(implementations) == 1 and implementations[0].plugin_name == DEFAULT_PLUGIN:
        only = implementations[0]
        return only.function(*[details[name] for name in only.argnames])
    return hook(**details)


def notify(listener: Any, **details: Any) -> None:
    """Call every implementation of `listener`. An exception in one is logged, and the others are still called."""
    for implementation in reversed(listener.get_hookimpls()):
        try:
            implementation.function(*(details[name] for name in implementation.argnames))
        except Exception as error:
            sentence = "Plugin %s raised an exception in %s. The invocation continues."
            _log_error(sentence, implementation.plugin_name, listener.name, error=error, run=details.get("run"))


def ask(question: Any, answers: Any, **details: Any) -> Any:
    """Call the implementations of `question` in order, and return the first value of one of the types `answers`.

    An invalid return value or an exception in a plugin is logged, and the next plugin is called. The default plugin is
    called last, and always returns a valid value.
    """
    for implementation in reversed(question.get_hookimpls()):
        try:
            answer = implementation.function(*(details[name] for name in implementation.argnames))
        except Exception as error:
            sentence = "Plugin %s raised an exception in %s. The next plugin is called."
            _log_error(sentence, implementation.plugin_name, question.name, error=error, run=details.get("run"))
            continue
        if isinstance(answer, answers):
            return answer
        if answer is not None:
            logger.error(
                "Plugin %s returned an invalid value from %s: %s. The next plugin is called.",
                implementation.plugin_name,
                question.name,
                # Only the type of other objects: the repr() of an error may quote arguments.
                repr(answer)
                if isinstance(answer, int | float | str)
                else f"object of type {type(answer).__qualname__}",
            )
    raise LookupError(f"No plugin returned a value from {question.name}. The default plugin is missing.")


def _log_error(sentence: str, *words: object, error: Exception, run: Run | None) -> None:
    if run is None:
        logger.error(sentence, *words, exc_info=error, stacklevel=2)
    else:
        from lambda_tasks.jobs import log_error  # only an error pays for the import

        log_error(logger, run, sentence, *words, error=error)


def forget_plugins(*, setting: str, **_: object) -> None:
    """Discard the plugins when a setting of theirs changes, so that the next use loads them again."""
    global _loaded
    if setting in (f"{PREFIX}PLUGINS", f"{PREFIX}CONTEXT"):
        with _loading:
            _unregister_all()
            _loaded = False


setting_changed.connect(forget_plugins, dispatch_uid="lambda_tasks.plugins")
