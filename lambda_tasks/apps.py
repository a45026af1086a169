"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _

from lambda_tasks.settings import app_settings


class LambdaTasksConfig(AppConfig):
    name = "lambda_tasks"
    verbose_name = _("Lambda tasks")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from lambda_tasks import checks  # noqa: F401, registers the system checks

        if app_settings.plugins:
            from lambda_tasks.plugins import load_plugins

            load_plugins()  # a misspelt hook is an error at start, not at the first task
