"""A backend for Django's own tasks: `TASKS = {"default": {"BACKEND": "….django_tasks.LambdaTasksBackend"}}`.

It works with `django.tasks` of Django 6.0 and later, and with the package `django-tasks` on Django 5.2.
"""

from __future__ import annotations

from lambda_tasks.contrib.django_tasks.backend import LambdaTasksBackend
from lambda_tasks.contrib.django_tasks.options import lambda_options

__all__ = ["LambdaTasksBackend", "lambda_options"]
