"""The plugin manager: one relay of hooks, filled from LAMBDA_TASKS_PLUGINS on first use."""

from __future__ import annotations

import importlib
import logging
import threading
from typing import TYPE_CHECKING, Any, Final, cast

import pluggy
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.hookspecs import LISTENERS, PROJECT, QUESTIONS, Hooks
from lambda_tasks.settings import PREFIX, app_settings

if TYPE_CHECKING:
    from lambda_tasks.jobs import Run

logger = logging.getLogger("lambda_tasks.plugins")

#: How the library itself behaves where no other plugin has an answer: a plugin as any other.
DEFAULT_PLUGIN: Final = "lambda_tasks.default_plugin"

manager = pluggy.PluginManager(PROJECT)
manager.add_hookspecs(Hooks)

_relay: Final = cast(Hooks, manager.hook)
_loading = threading.RLock()
_loaded = False


def hooks() -> Hooks:
    """Return the relay through which all hooks are called, with every plugin of the settings in it."""
    if not _loaded:
        load_plugins()
    return _relay


def load_plugins() -> None:
    """Register the default plugin and those of LAMBDA_TASKS_PLUGINS, which are called in their order.

    Raises `InvalidSetting` for a plugin that cannot be imported or has no hook, a hook that does not
    exist (a misspelt name), an argument that a hook does not have, and a wrapper where there is
    nothing to wrap.
    """
    global _loaded
    with _loading:
        if _loaded:
            return
        try:
            manager.register(_imported(DEFAULT_PLUGIN), name=DEFAULT_PLUGIN)
            # pluggy asks the latest first; in a list of settings, as in MIDDLEWARE, the first is the outermost.
            for plugin in reversed(app_settings.plugins):
                _register(plugin)
            _refuse_what_cannot_be_called()
        except BaseException:
            _unregister_all()
            raise
        _loaded = True


def _register(plugin: Any) -> None:
    try:
        found = _imported(plugin) if isinstance(plugin, str) else plugin
        registered = found() if isinstance(found, type) else found  # a class stands for an instance of it
        manager.register(registered)
        if not manager.get_hookcallers(registered):
            raise ValueError("it implements no hook; mark its functions with @hookimpl")
    except (ImportError, TypeError, ValueError, pluggy.PluginValidationError) as error:
        raise InvalidSetting(f"LAMBDA_TASKS_PLUGINS has {plugin!r}, which cannot be used: {error}") from error


def _imported(path: str) -> Any:
    """Import what `path` names: a module, or an object in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        return import_string(path)


def _refuse_what_cannot_be_called() -> None:
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
                    f"{implementation.plugin_name} wraps {name}, around which there is nothing; write "
                    "it as a plain function, or wrap lambda_task_call."
                )


def _unregister_all() -> None:
    for _, plugin in manager.list_name_plugin():
        if plugin is not None:
            manager.unregister(plugin)


def notify(listener: Any, **details: Any) -> None:
    """Tell every implementation of `listener`; one that raises is logged and silences no other."""
    for implementation in reversed(listener.get_hookimpls()):
        try:
            implementation.function(*(details[name] for name in implementation.argnames))
        except Exception as error:
            sentence = "Plugin %s raised in %s; the invocation goes on as if it had not."
            _log_error(sentence, implementation.plugin_name, listener.name, error=error, run=details.get("run"))


def ask(question: Any, answers: Any, **details: Any) -> Any:
    """Return the first answer to `question` that is one of the types `answers`.

    A plugin that raises, or answers with something else, is logged and passed over; the default
    plugin is asked last, and always answers.
    """
    for implementation in reversed(question.get_hookimpls()):
        try:
            answer = implementation.function(*(details[name] for name in implementation.argnames))
        except Exception as error:
            sentence = "Plugin %s raised in %s; it is passed over."
            _log_error(sentence, implementation.plugin_name, question.name, error=error, run=details.get("run"))
            continue
        if isinstance(answer, answers):
            return answer
        if answer is not None:
            logger.error(
                "Plugin %s answered %s with %s; it is passed over.",
                implementation.plugin_name,
                question.name,
                # What it is would be told by an error in it too, and that may quote arguments.
                repr(answer) if isinstance(answer, int | float | str) else f"a {type(answer).__qualname__}",
            )
    raise LookupError(f"No plugin answered {question.name}; the default plugin is missing.")


def _log_error(sentence: str, *words: object, error: Exception, run: Run | None) -> None:
    if run is None:
        logger.error(sentence, *words, exc_info=error)
    else:
        run.log_error(logger, logging.ERROR, sentence, *words, error=error)


def forget_plugins(*, setting: str, **_: object) -> None:
    """Load the plugins again when their setting has changed."""
    global _loaded
    if setting == f"{PREFIX}PLUGINS":
        with _loading:
            _unregister_all()
            _loaded = False


setting_changed.connect(forget_plugins, dispatch_uid="lambda_tasks.plugins")
