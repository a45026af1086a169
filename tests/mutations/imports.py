"""Mutations of imports that a message causes."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

IMPORTABLE: Final = "tests/definition/test_importable.py"
FROZEN: Final = "tests/project/test_frozen.py"

MUTATIONS: Final = (
    Mutation(
        "modules with reserved names are imported",
        "definition/importable.py",
        "    return _holds(package, module_name) and not reserved\n",
        "    return _holds(package, module_name)\n",
        IMPORTABLE,
    ),
    Mutation(
        "configuration modules are imported",
        "definition/importable.py",
        "return not _configures(module_name) and any(",
        "return any(",
        IMPORTABLE,
    ),
    Mutation(
        'LAMBDA_TASKS_IMPORTS = "tasks" allows further imports',
        "definition/importable.py",
        '    if app_settings.imports == "tasks":\n        return False\n',
        "",
        IMPORTABLE,
    ),
    Mutation(
        "malformed module names are imported",
        "definition/importable.py",
        "    if not _is_plain(module_name):\n        return False\n",
        "",
        IMPORTABLE,
    ),
    Mutation(
        "imports ignore the deadline", "execution/resolving.py", "    if deadline is None:", "    if True:", IMPORTABLE
    ),
    Mutation(
        "failed imports leave tasks in the registry",
        "registry.py",
        "        _forget_unfinished(before)",
        "        pass",
        IMPORTABLE,
    ),
    Mutation(
        "a worker that sends nothing imports the transport",
        "operations/outboxes.py",
        "    if sends_directly():\n        return None\n",
        "",
        "tests/project/test_imports_cost.py",
    ),
    Mutation(
        "the admin imports pages at the start",
        "admin/later.py",
        "        self._name = name\n",
        "        self._name = name\n        import_module(name)\n",
        "tests/project/test_imports_cost.py",
    ),
    Mutation(
        "values can be changed",
        "foundation/frozen.py",
        '    raise FrozenInstanceError(f"cannot assign to field {name!r}")\n',
        "    vars(self)[name] = value\n",
        FROZEN,
    ),
    Mutation(
        "values with missing fields are accepted",
        "foundation/frozen.py",
        "    if values.keys() != cls._fields.keys():\n",
        "    if False:\n",
        FROZEN,
    ),
    Mutation(
        "values are compared by excluded fields",
        "foundation/frozen.py",
        "for name, each in fields.items() if each.compare)",
        "for name, each in fields.items())",
        FROZEN,
    ),
    Mutation(
        "malformed names pass the quick check",
        "wire/invocation.py",
        ' and "." in text and ".." not in text and text.strip(".") == text',
        "",
        "tests/wire/test_task_names.py",
    ),
)
