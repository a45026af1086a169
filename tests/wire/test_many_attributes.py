"""Messages with more attributes than SQS accepts: the library's own are packed into one, and no worker misses any."""

from __future__ import annotations

import json
from contextvars import ContextVar
from typing import Any, Final

import pytest
from django.db import transaction

from lambda_tasks import RetryLater, current_task, group
from lambda_tasks.backends.sqs_messages import MAX_ATTRIBUTES
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.local.event_source import build_record
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.wire.attributes import (
    CONTEXT_ATTRIBUTE,
    FIRST_SENT_ATTRIBUTE,
    FLOW_ATTRIBUTE,
    GROUP_ATTRIBUTE,
    MESSAGE_ID_ATTRIBUTE,
    MORE_ATTRIBUTE,
    OWN_ATTRIBUTES,
    QUEUE_ATTRIBUTE,
    ROOT_ID_ATTRIBUTE,
    SCHEDULED_FOR_ATTRIBUTE,
    packed,
    unpacked,
)
from lambda_tasks.wire.deliveries import Delivery
from tests.conftest import Sqs

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.filterwarnings("ignore::lambda_tasks.exceptions.UnreachableTaskWarning"),
]

#: What the plugins for OpenTelemetry and Sentry add.
TRACE: Final = {"traceparent": "00-a-b-01", "tracestate": "a=b", "sentry-trace": "c-d", "baggage": "e=f"}
ROOTS: Final = {MESSAGE_ID_ATTRIBUTE, ROOT_ID_ATTRIBUTE, QUEUE_ATTRIBUTE}
EXTRAS: Final = {
    FIRST_SENT_ATTRIBUTE: "1700000000000",
    SCHEDULED_FOR_ATTRIBUTE: "1700000000",
    FLOW_ATTRIBUTE: "call group:0193a4c5-6f00-7a00-8000-000000000001",
    GROUP_ATTRIBUTE: "tenant-7",
    CONTEXT_ATTRIBUTE: '{"request":"\\u00e9 \\"x\\""}',
}
request: Final[ContextVar[str]] = ContextVar("request", default="none")
#: What each run has seen: the task, the attempt, the request, the group and the attributes of its message.
seen: list[tuple[str, int, str, str | None, dict[str, str]]] = []
#: The attributes of each message, as plugins see them.
carried: dict[str, dict[str, str]] = {}


class Tracing:
    """Adds as many attributes as the two plugins together, and one of a project."""

    @hookimpl
    def lambda_task_sending(self, job: Job) -> None:
        job.attributes.update({**TRACE, "shop-version": "7"})

    @hookimpl
    def lambda_task_started(self, run: Run) -> None:
        carried[run.message_id] = dict(run.attributes)


def note(name: str) -> int:
    task = current_task()
    assert task is not None
    seen.append((name, task.attempt, request.get(), task.group, carried[task.message_id]))
    return task.attempt


@lambda_task(group="tenant", expires_in=3600, max_retries=1)
def first(*, tenant: str) -> None:
    if note("first") == 1:
        raise RetryLater(delay=0)


@lambda_task(group="tenant")
def follower(*, tenant: str) -> None:
    note("follower")


@pytest.fixture(autouse=True)
def everything(sqs: Sqs, settings: Any) -> None:
    """Load all plugins that write attributes."""
    seen.clear()
    settings.LAMBDA_TASKS_CONTEXT = {"request": f"{__name__}.request"}
    settings.LAMBDA_TASKS_PLUGINS = [Tracing()]


def received(sqs: Sqs) -> list[dict[str, Any]]:
    return [
        build_record(message, queue_arn="arn:aws:sqs:us-east-1:123456789012:default")
        for message in sqs.receive("default")
    ]


def names_in(record: dict[str, Any]) -> set[str]:
    return set(record["messageAttributes"])


def run_all(sqs: Sqs) -> list[set[str]]:
    """Run all messages and those that follow, and return the names of their attributes."""
    names: list[set[str]] = []
    while depth := sqs.depth():
        if not depth["visible"] + depth["delayed"]:
            break
        records = received(sqs)
        names += [names_in(record) for record in records]
        assert handler({"Records": records}, None) == {"batchItemFailures": []}
    return names


def call() -> None:
    token = request.set("a \\ request\n")
    with transaction.atomic():
        then = follower.invocation(tenant="b")
        group([first.invocation(tenant="a")], then=then).execute_on_commit()
        first.using(on_success=then).execute_on_commit(tenant="c")
    request.reset(token)


class TestPacking:
    def test_few_attributes_are_unchanged(self) -> None:
        attributes = dict.fromkeys(ROOTS, "x") | EXTRAS
        assert packed(attributes, MAX_ATTRIBUTES) is attributes

    def test_all_extras_leave_room_for_two_attributes(self) -> None:
        whole = dict.fromkeys(ROOTS, "x") | EXTRAS | TRACE | {"shop-a": "1", "shop-b": "2"}
        sent = packed(whole, MAX_ATTRIBUTES)
        assert set(sent) == {*ROOTS, *TRACE, "shop-a", "shop-b", MORE_ATTRIBUTE}
        assert len(sent) == MAX_ATTRIBUTES
        assert sent[MORE_ATTRIBUTE].isascii()
        assert unpacked(dict(sent)) == whole

    def test_one_extra_is_not_packed(self) -> None:
        whole = dict.fromkeys(ROOTS, "x") | {FLOW_ATTRIBUTE: "call"} | {f"a{n}": "x" for n in range(7)}
        assert packed(whole, MAX_ATTRIBUTES) is whole

    def test_own_attribute_has_precedence(self) -> None:
        text = json.dumps({FLOW_ATTRIBUTE: "call", GROUP_ATTRIBUTE: "packed", MORE_ATTRIBUTE: "{}", "empty": ""})
        found = unpacked({MORE_ATTRIBUTE: text, GROUP_ATTRIBUTE: "own"})
        assert found == {FLOW_ATTRIBUTE: "call", GROUP_ATTRIBUTE: "own"}

    def test_attributes_of_plugins_fit(self) -> None:
        """Those that the plugins of the library add, all at once."""
        otel = pytest.importorskip("lambda_tasks.contrib.opentelemetry")
        sentry = pytest.importorskip("lambda_tasks.contrib.sentry")
        added = {*otel._propagator.fields, *sentry.TRACE_ATTRIBUTES}
        assert added == set(TRACE)
        assert len(packed(dict.fromkeys((*ROOTS, *EXTRAS, *added), "x"), MAX_ATTRIBUTES)) <= MAX_ATTRIBUTES
        assert OWN_ATTRIBUTES - {MORE_ATTRIBUTE} == ROOTS | EXTRAS.keys() - {CONTEXT_ATTRIBUTE}


@pytest.mark.parametrize("keys", [[], ["k" * 32]], ids=["unsigned", "signed"])
@pytest.mark.parametrize("outbox", [False, True], ids=["direct", "outbox"])
class TestOnTheQueue:
    def test_all_attributes_arrive(self, sqs: Sqs, settings: Any, outbox: bool, keys: list[str]) -> None:
        """A group and a call with followers, their retries and what follows them."""
        settings.LAMBDA_TASKS_OUTBOX = outbox
        settings.LAMBDA_TASKS_SIGNING_KEYS = keys
        call()
        names = run_all(sqs)
        assert max(map(len, names)) <= MAX_ATTRIBUTES
        assert all(MORE_ATTRIBUTE in each for each in names[:4]), "the calls and their retries"
        assert all(TRACE.keys() <= each for each in names), "they stay where instrumentations look for them"
        assert sorted((name, attempt, request, group) for name, attempt, request, group, _ in seen) == [
            *[("first", attempt, "a \\ request\n", tenant) for attempt in (1, 2) for tenant in "ac"],
            *[("follower", 1, "a \\ request\n", "b")] * 2,
        ]
        assert all(attributes.keys() == {*TRACE, "shop-version", CONTEXT_ATTRIBUTE} for *_, attributes in seen)
        statuses = sorted(TaskRecord.objects.values_list("status", flat=True))
        assert statuses == ["RETRYING"] * 2 + ["SUCCESS"] * 4
        assert not OutboxMessage.objects.exists()

    def test_changed_extra_is_refused(self, sqs: Sqs, settings: Any, outbox: bool, keys: list[str]) -> None:
        """The signature covers what is packed, as if it was not packed."""
        settings.LAMBDA_TASKS_OUTBOX = outbox
        settings.LAMBDA_TASKS_SIGNING_KEYS = keys
        call()
        records = received(sqs)
        for record in records:
            more = record["messageAttributes"][MORE_ATTRIBUTE]
            more["stringValue"] = more["stringValue"].replace("request", "tampered")
        failures = handler({"Records": records}, None)["batchItemFailures"]
        assert len(failures) == (len(records) if keys else 0)


class TestMalformed:
    @pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', "null", "[" * 100_000])
    def test_message_stays_on_the_queue(self, sqs: Sqs, text: str) -> None:
        call()
        records = received(sqs)
        records[0]["messageAttributes"][MORE_ATTRIBUTE] = {"stringValue": text, "dataType": "String"}
        assert handler({"Records": records[:1]}, None) == {
            "batchItemFailures": [{"itemIdentifier": records[0]["messageId"]}]
        }
        assert seen == []
        assert Delivery.of(records[0]).message_id

    def test_too_many_attributes_of_plugins_are_refused(self, settings: Any) -> None:
        class Chatty:
            @hookimpl
            def lambda_task_sending(self, job: Job) -> None:
                job.attributes.update({f"shop-{number}": "x" for number in range(2)})

        settings.LAMBDA_TASKS_PLUGINS = [Tracing(), Chatty()]
        with pytest.raises(InvalidArguments, match=r"at most 10 attributes, not 11 \(.*shop-1.*lambda_tasks\.more\)"):
            call()
