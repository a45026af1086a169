"""Decide which modules a worker may import because a message names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from django.apps import apps
from django.conf import settings as django_settings

from lambda_tasks.settings import app_settings

#: Module names of scripts, tests and configuration, in lower case. Importing such a module may have side effects.
_RESERVED: Final = frozenset(
    {"manage", "management", "migrations", "script", "scripts", "bin", "conftest", "wsgi", "asgi", "fabfile", "noxfile"}
    | {"test", "tests"}
)


def allows(module_name: str) -> bool:
    """Tell whether a message may make a worker import `module_name`."""
    if not _is_plain(module_name):
        return False
    if any(_grants(package, module_name) for package in app_settings.modules):
        return True
    if app_settings.imports == "tasks":
        return False
    return not _configures(module_name) and any(_grants(package, module_name) for package in _packages())


def reason_against(module_name: str) -> str:
    """Return the reason why `allows` refuses `module_name`."""
    if not _is_plain(module_name):
        return f"{module_name!r} is not a valid module name"
    if app_settings.imports == "tasks":
        return 'LAMBDA_TASKS_IMPORTS is "tasks", and no tasks module of an installed app imports it'
    if _configures(module_name) or any(_holds(package, module_name) for package in _packages()):
        return f"{module_name!r} is reserved for scripts, tests, migrations or configuration"
    return f"{module_name!r} is not part of an installed app or of the project"


def is_reserved(module_name: str) -> bool:
    """Tell whether `module_name` belongs to the project or an app, and is refused because of its name."""
    inside = _configures(module_name) or any(_holds(package, module_name) for package in _packages())
    return inside and not allows(module_name) and app_settings.imports != "tasks"


def _is_plain(module_name: str) -> bool:
    """Refuse names that an import statement cannot contain, and those that a file system may read differently."""
    parts = module_name.split(".")
    if not all(part.isidentifier() for part in parts) or parts[0] == "__main__":
        return False
    if module_name.isascii():
        return True
    from unicodedata import normalize

    return normalize("NFKC", module_name) == module_name


def _holds(package: str, module_name: str) -> bool:
    return f"{module_name}.".startswith(f"{package}.")


def _grants(package: str, module_name: str) -> bool:
    """Tell whether `module_name` is `package` or an ordinary module below it."""
    below = module_name[len(package) + 1 :].casefold()
    reserved = bool(below) and any(map(_is_reserved, below.split(".")))
    return _holds(package, module_name) and not reserved


def _is_reserved(word: str) -> bool:
    return (
        word in _RESERVED
        or (len(word) > 3 and word.startswith("__") and word.endswith("__"))
        or word.startswith("test_")
        or word.endswith(("_test", "_tests"))
        or _is_settings(word)
    )


def _is_settings(word: str) -> bool:
    return word == "settings" or word.startswith("settings_") or word.endswith("_settings")


def _packages() -> Iterator[str]:
    yield from (config.name for config in apps.get_app_configs())
    for module in (django_settings.SETTINGS_MODULE, getattr(django_settings, "ROOT_URLCONF", None)):
        if isinstance(module, str):
            package = module.partition(".")[0]
            if package not in ("", "__main__") and not _is_settings(package.casefold()):
                yield package


def _configures(module_name: str) -> bool:
    """Tell whether the module is the settings, URL, WSGI or ASGI module, or lies below one inside a package."""
    paths = [django_settings.SETTINGS_MODULE, getattr(django_settings, "ROOT_URLCONF", None)]
    for name in ("WSGI_APPLICATION", "ASGI_APPLICATION"):
        path = getattr(django_settings, name, None)
        paths.append(path.rpartition(".")[0] if isinstance(path, str) else None)
    return any(
        isinstance(path, str)
        and (module_name == path or ("." in path and module_name.startswith(f"{path}.")))
        and not any(_holds(config.name, module_name) and _holds(path, config.name) for config in apps.get_app_configs())
        for path in paths
    )
