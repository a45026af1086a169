"""The view of the health: what it checks, and what it tells to whom."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.db import OperationalError, connections
from django.db.migrations.recorder import MigrationRecorder
from django.test import RequestFactory, override_settings
from django.utils import timezone

from lambda_tasks import registry
from lambda_tasks.contrib import health
from lambda_tasks.contrib.health import HealthView, health_view
from lambda_tasks.decorators import lambda_task
from lambda_tasks.models import OutboxMessage
from lambda_tasks.operations import queues
from lambda_tasks.operations.queues import Depth
from lambda_tasks.strategies import get_lock
from tests.courier import COURIER, OUTBOX

pytestmark = pytest.mark.django_db(transaction=True)

outbox_is_on = override_settings(LAMBDA_TASKS_BACKEND={"BACKEND": OUTBOX, "OPTIONS": {"transport": COURIER}})


@lambda_task(singleton=True)
def alone() -> None: ...


def answer(view: Callable[..., Any] = health_view, user: Any = None, method: str = "get") -> Any:
    request = getattr(RequestFactory(), method)("/health/")
    request.user = user or AnonymousUser()
    return view(request)


def checks(**options: Any) -> dict[str, str]:
    """Return what a user with the permission sees."""
    user, _ = User.objects.get_or_create(username="ada")
    user.user_permissions.add(Permission.objects.get(codename="view_taskrecord"))
    response = answer(HealthView.as_view(**options), User.objects.get(username="ada"))
    found: dict[str, str] = answer_json(response)["checks"]
    return found


def answer_json(response: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(response.content)
    return found


def fail(*_: Any, **__: Any) -> None:
    raise OperationalError("no route to db.internal:5432")


class TestAnswer:
    def test_healthy_process_answers_200(self) -> None:
        response = answer()
        assert (response.status_code, answer_json(response)) == (200, {"status": "ok"})
        assert "no-store" in response["Cache-Control"]

    def test_unavailable_database_answers_503(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(connections["default"], "cursor", fail)
        response = answer()
        assert (response.status_code, answer_json(response)) == (503, {"status": "unavailable"})
        assert "The check of the health of database has failed: OperationalError: no route" in caplog.text
        assert len(caplog.records) == 1  # the other checks would wait for the database, too

    def test_details_need_the_permission(self) -> None:
        user = User.objects.create(username="bob", is_staff=True)
        assert set(answer_json(answer(user=user))) == {"status"}
        assert checks()["database"] == "ok"

    def test_user_that_cannot_be_read_sees_no_details(self) -> None:
        class Unreadable:
            has_perm = fail

        assert answer_json(answer(user=Unreadable())) == {"status": "ok"}

    def test_project_without_users_has_no_details(self) -> None:
        assert answer_json(health_view(RequestFactory().get("/health/"))) == {"status": "ok"}

    @pytest.mark.parametrize(("method", "status"), [("head", 200), ("post", 405)])
    def test_only_reading_is_allowed(self, method: str, status: int) -> None:
        assert answer(method=method).status_code == status


class TestChecks:
    def test_missing_migration_is_found(self) -> None:
        applied = MigrationRecorder(connections["default"])
        applied.record_unapplied("lambda_tasks", "0012_enqueued_tasks")
        try:
            assert checks()["tables"].startswith("Migration 0012_enqueued_tasks is not applied.")
        finally:
            applied.record_applied("lambda_tasks", "0012_enqueued_tasks")

    def test_tables_are_not_checked_on_request(self) -> None:
        assert "tables" not in checks(check_tables=False)

    @pytest.mark.parametrize(("seconds", "found"), [(5, "ok"), (3_600, "A message in the outbox")])
    def test_overdue_message_is_found(self, seconds: int, found: str) -> None:
        with outbox_is_on:
            due = timezone.now() - timedelta(seconds=seconds)
            OutboxMessage.objects.create(
                id="01931a6e-8d7b-7c10-9b1f-5b6a1f6c2d10",
                task_name="shop.tasks.x",
                queue="default",
                body="{}",
                attributes={},
                due_at=due,
                created_at=due,
                run_at=due,
            )
            assert checks()["outbox"].startswith(found)
            assert "outbox" not in checks(max_outbox_age=None)

    def test_outbox_is_not_checked_without_one(self) -> None:
        assert "outbox" not in checks()

    def test_lock_is_checked_if_a_task_needs_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert checks()["lock"] == "ok"
        monkeypatch.setattr(registry, "registered_tasks", list)
        assert "lock" not in checks()
        assert checks(check_lock=True)["lock"] == "ok"

    def test_unavailable_lock_is_found(self) -> None:
        away = {
            "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://127.0.0.1:9"}
        }
        with override_settings(CACHES=away):
            assert "ConnectionError" in checks()["lock"]

    def test_lock_is_released(self) -> None:
        health.check_lock()
        assert not getattr(get_lock(), "_held", None)

    def test_queues_are_checked_on_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(queues, "depths", lambda: [Depth("default"), Depth("mail", problem="AccessDenied")])
        assert "queues" not in checks()
        assert checks(check_queues=True)["queues"] == "Queue 'mail': AccessDenied"
