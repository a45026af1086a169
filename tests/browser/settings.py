"""Settings of the site that the browser opens: the example project, behind a strict Content-Security-Policy."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "example"))

from webshop.settings import *  # noqa: F403
from webshop.settings import MIDDLEWARE as _MIDDLEWARE

DEBUG = False
MIDDLEWARE = ["tests.browser.policy.StrictPolicy", *_MIDDLEWARE]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Tasks run in the process of the site, when the outbox sends them.
LAMBDA_TASKS_EAGER = False
LAMBDA_TASKS_OUTBOX = False
LAMBDA_TASKS_BACKEND = {
    "BACKEND": "lambda_tasks.backends.outbox.OutboxBackend",
    "OPTIONS": {"transport": "lambda_tasks.backends.eager.EagerBackend"},
}
LAMBDA_TASKS_ADMIN_LINKS = {
    "CloudWatch Logs": "https://console.aws.amazon.com/cloudwatch/home?region=eu-west-1#logsV2:log-groups/log-group/"
    "shop/log-events$3FfilterPattern$3D{message_id}$26start$3D{start}$26end$3D{end}",
    "Sentry": "https://sentry.example.com/issues/?query=lambda_tasks.message_id:{message_id}",
}
LOGGING = {"version": 1, "disable_existing_loggers": False}
