"""Route the tables of the two databases."""

from __future__ import annotations

from typing import Any

#: The app label of Django's database cache.
CACHE = "django_cache"


class CacheRouter:
    """Keep the cache's table in the database `cache`, and all other tables in the other database."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "cache" if model._meta.app_label == CACHE else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return (db == "cache") == (app_label == CACHE)
