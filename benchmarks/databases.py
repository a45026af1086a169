"""Create a database for the duration of a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import django
from django.core.management import call_command
from django.db import connection


@contextmanager
def migrated() -> Iterator[None]:
    """Set Django up, create the database of the settings, and drop it at the end."""
    django.setup()
    creation = connection.creation
    creation._create_test_db(verbosity=0, autoclobber=True, keepdb=False)
    connection.close()
    try:
        call_command("migrate", verbosity=0)
        yield
    finally:
        connection.close()
        creation._destroy_test_db(connection.settings_dict["NAME"], verbosity=0)
