"""A page that sends tasks and shows their records."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods

from lambda_tasks.models import OutboxMessage, TaskProgress, TaskRecord
from shop.kinds import KINDS, chosen_kinds
from shop.models import Measurement, Order
from shop.records import outcome, seconds, short_name

RECORDS_SHOWN = 60
OUTBOX_SHOWN = 10


@require_GET
def index(request: HttpRequest) -> HttpResponse:
    return _page(request)


@require_http_methods(["GET", "POST"])
def trigger(request: HttpRequest) -> HttpResponse:
    """Place an order, and send the tasks of one kind with it: `?name=Alice&kind=retry`.

    The order and its tasks share one transaction, and the tasks are sent when it commits.
    """
    query = request.POST or request.GET
    kinds = chosen_kinds(query.get("kind", "success"))
    if not kinds:
        raise Http404(f"kind must be one of everything, {', '.join(kind.name for kind in KINDS)}.")
    with transaction.atomic():
        order = Order.objects.create(customer=_name(query.get("name", "")))
        handles = [handle for kind in kinds for handle in kind.send(order)]
        refused = transaction.get_rollback()
    placed = {"order": None if refused else order.pk, "sent": [handle.message_id for handle in handles]}
    if request.accepts("text/html"):
        return _page(request, placed=placed)
    return JsonResponse(placed)


@require_GET
def records(request: HttpRequest) -> JsonResponse:
    """Return the data of the page: the outbox, next due first, and the records, newest first."""
    now = timezone.now()
    newest = list(TaskRecord.objects.order_by("-start_time", "-pk")[:RECORDS_SHOWN])
    running = [record.pk for record in newest if record.status == TaskRecord.TaskStatus.RUNNING]
    bars = TaskProgress.objects.in_bulk(running)
    kept = OutboxMessage.objects.order_by("due_at", "pk").defer("body", "attributes")[:OUTBOX_SHOWN]
    return JsonResponse(
        {
            "outbox": [_kept(message) for message in kept],
            "records": [_record(record, now, bars.get(record.pk)) for record in newest],
            "measurements": [
                {
                    "task": short_name(row.task_name),
                    "outcome": row.outcome,
                    "runs": row.runs,
                    "mean": row.mean,
                    "slowest": row.slowest,
                }
                for row in Measurement.objects.all()
            ],
        }
    )


def _page(request: HttpRequest, **notice: Any) -> HttpResponse:
    context = {
        "eager": getattr(settings, "LAMBDA_TASKS_EAGER", False),
        "queues": ", ".join(getattr(settings, "LAMBDA_TASKS_QUEUES", ())),
        "kinds": KINDS,
        "name": _name(request.GET.get("name", "")),
        **notice,
    }
    return render(request, "shop/index.html", context)


def _name(text: str) -> str:
    return " ".join(text.replace("\x00", "").split())[:60] or "Alice"


def _record(record: TaskRecord, now: Any, bar: TaskProgress | None) -> dict[str, Any]:
    return {
        "id": str(record.pk),
        "task": short_name(record.task_name),
        "status": record.status,
        "retry": record.n_retries,
        "crashes": record.takeovers,
        "started": record.start_time,
        "seconds": seconds(record, now=now),
        "outcome": outcome(record),
        "progress": bar and {"done": bar.done, "total": bar.total, "note": bar.note},
        "url": reverse("admin:lambda_tasks_taskrecord_change", args=[record.pk]),
    }


def _kept(message: OutboxMessage) -> dict[str, Any]:
    return {
        "id": str(message.pk),
        "task": short_name(message.task_name),
        "dead": message.due_at is None,
        "until": message.run_at or message.due_at,
        "error": message.error,
        "url": reverse("admin:lambda_tasks_outboxmessage_change", args=[message.pk]),
    }
