"""Import the tasks of all installed apps, since the time limits of a queue depend on them."""

from __future__ import annotations

from lambda_tasks.operations.doctor.findings import Doctor
from lambda_tasks.recording.storable import shown
from lambda_tasks.registry import import_tasks_of_apps


def look_at_tasks(doctor: Doctor) -> None:
    """Import the `tasks` modules, and report those that cannot be imported."""
    for module_name, error in import_tasks_of_apps().items():
        doctor.find(
            "D501",
            f"module {module_name!r}",
            f"it cannot be imported: {type(error).__name__}: {shown(str(error))}. Workers do not run its tasks, and "
            "the doctor does not know their time limits.",
            f"Run `python manage.py shell -c 'import {module_name}'` to see the traceback, and correct the module.",
        )
