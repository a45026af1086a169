"""Which database holds what, where there are two of them."""

from __future__ import annotations

from typing import Any

#: The app label under which Django's database cache asks.
CACHE = "django_cache"


class CacheRouter:
    """Keeps the cache's table in the database `cache`, and everything else out of it."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "cache" if model._meta.app_label == CACHE else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return (db == "cache") == (app_label == CACHE)
