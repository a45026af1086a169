"""The project's settings, with the plugins that the variable PLUGINS names."""

import os

SECRET_KEY = "only for this check"
USE_TZ = True
INSTALLED_APPS = ["lambda_tasks", "shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LAMBDA_TASKS_QUEUES = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/shop"}
LAMBDA_TASKS_ENCRYPTION_KEYS = os.environ.get("ENCRYPTION_KEYS", "").split()
LAMBDA_TASKS_PLUGINS = os.environ.get("PLUGINS", "").split()
