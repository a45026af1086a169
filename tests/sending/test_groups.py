"""Message groups on their way: to SQS, through the outbox, to the task, and to its retries and followers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from django.db import transaction

from lambda_tasks import chain, current_task, failpoints, group
from lambda_tasks.backends.memory import event_record
from lambda_tasks.backends.rows import job_of
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition.schedules import Every
from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.operations.dead_letters import dead_letter_queues, redrive
from lambda_tasks.operations.reaping import reap
from lambda_tasks.operations.rerunning import run_again
from lambda_tasks.operations.schedules import Entry
from lambda_tasks.testing import TaskQueue, collect_tasks
from lambda_tasks.wire.attributes import GROUP_ATTRIBUTE
from lambda_tasks.wire.deliveries import Delivery
from tests.conftest import Sqs
from tests.courier import outbox, rows, use_outbox

seen: list[str | None] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


def note_group() -> None:
    current = current_task()
    assert current is not None
    seen.append(current.group)


@lambda_task(group="tenant_id", retry_on=(ConnectionError,), max_retries=1)
def bill(*, tenant_id: int | str, fails: bool = False) -> None:
    note_group()
    if fails:
        raise ConnectionError("the bank does not answer")


@lambda_task(group=lambda *, tenant_id: f"mail-{tenant_id}")
def mail(*, tenant_id: int) -> None:
    note_group()


@lambda_task
def report() -> None:
    note_group()


@lambda_task(group="tenant_id", unique=True, on_duplicate="replace")
def newest(*, tenant_id: int) -> None: ...


@pytest.fixture
def queue() -> Iterator[TaskQueue]:
    with collect_tasks() as found:
        yield found


def group_on_sqs(message: dict[str, Any]) -> str | None:
    group_id: str | None = message["Attributes"].get("MessageGroupId")
    return group_id


class TestSqs:
    """moto's server accepts a MessageGroupId on standard queues, and returns it."""

    @pytest.mark.django_db(transaction=True)
    def test_message_has_its_group(self, sqs: Sqs) -> None:
        bill.execute_on_commit(tenant_id=7)
        [message] = sqs.receive()
        assert group_on_sqs(message) == "7"
        assert message["MessageAttributes"][GROUP_ATTRIBUTE]["StringValue"] == "7"

    @pytest.mark.django_db(transaction=True)
    def test_messages_of_a_batch_have_their_groups(self, sqs: Sqs) -> None:
        with transaction.atomic():
            for tenant_id in (7, 8):
                bill.execute_on_commit(tenant_id=tenant_id)
            report.execute_on_commit()
        assert sorted(map(str, map(group_on_sqs, sqs.receive()))) == ["7", "8", "None"]

    def test_redriven_message_keeps_its_group(self, sqs: Sqs) -> None:
        dead = sqs.client.get_queue_attributes(QueueUrl=sqs.queues["other"], AttributeNames=["QueueArn"])
        policy = {"deadLetterTargetArn": dead["Attributes"]["QueueArn"], "maxReceiveCount": "5"}
        attributes = {"RedrivePolicy": json.dumps(policy)}
        sqs.client.set_queue_attributes(QueueUrl=sqs.queues["default"], Attributes=attributes)
        body = bill._call((), {"tenant_id": 7}).to_body()
        sqs.client.send_message(QueueUrl=sqs.queues["other"], MessageBody=body, MessageGroupId="7")
        [queue] = dead_letter_queues(["default"])
        errors = redrive(queue, limit=1).errors
        [message] = sqs.receive()
        assert (errors, group_on_sqs(message)) == ([], "7")

    def test_group_of_a_plugin_is_checked(self, sqs: Sqs) -> None:
        job = Job(message=mail._call((), {"tenant_id": 7}), message_id="1", root_id="1", group="tenant 7")
        with pytest.raises(InvalidArguments, match=r"The group of .*mail must be 1 to 128 ASCII .*, not 'tenant 7'"):
            SQSBackend().validate(job)


class TestDeliveries:
    def test_group_of_sqs_takes_precedence(self) -> None:
        record = event_record(Job(mail._call((), {"tenant_id": 7}), "1", root_id="1", group="own"))
        assert Delivery.of(record).group == "own"
        assert Delivery.of({**record, "attributes": {"MessageGroupId": "another"}}).group == "another"
        assert Delivery.of({**record, "attributes": {}}).group == "own"  # from a transport without groups
        assert Delivery.of({**record, "attributes": {"MessageGroupId": "a b"}, "messageAttributes": {}}).group is None

    def test_plugins_do_not_see_the_attribute(self) -> None:
        record = event_record(Job(mail._call((), {"tenant_id": 7}), "1", root_id="1", group="own"))
        assert Delivery.of(record).attributes == {}


@pytest.mark.django_db(transaction=True)
class TestTasks:
    def test_retry_has_the_group_of_the_call(self, queue: TaskQueue) -> None:
        bill.using(group="trial").execute_on_commit(tenant_id=7, fails=True)
        queue.run_until_idle(raise_errors=False)
        assert seen == ["trial", "trial"]

    def test_retry_has_the_group_of_another_program(self, queue: TaskQueue) -> None:
        bill.execute_on_commit(tenant_id=7, fails=True)
        [record] = [event_record(job) for job in queue.jobs]
        queue.clear()
        record["attributes"]["MessageGroupId"] = "scheduler"
        del record["messageAttributes"][GROUP_ATTRIBUTE]
        handler({"Records": [record]}, None)
        [retry] = queue.jobs
        assert (seen, retry.group) == (["scheduler"], "scheduler")

    def test_steps_of_a_chain_have_their_groups(self, queue: TaskQueue) -> None:
        chain(
            bill.invocation(tenant_id=7),
            report.invocation(),
            mail.invocation(tenant_id=8),
            mail.using(group="trial").invocation(tenant_id=8),
        ).execute_on_commit()
        queue.run_until_idle()
        assert seen == ["7", None, "mail-8", "trial"]

    def test_members_of_a_group_have_message_groups(self, queue: TaskQueue) -> None:
        group([bill.invocation(tenant_id=7), mail.using(group="trial").invocation(tenant_id=8)]).execute_on_commit()
        assert [job.group for job in queue.jobs] == ["7", "trial"]

    def test_follower_has_its_own_group(self, queue: TaskQueue) -> None:
        bill.using(on_success=mail.invocation(tenant_id=8)).execute_on_commit(tenant_id=7)
        queue.run_until_idle()
        assert seen == ["7", "mail-8"]

    def test_follower_with_a_wrong_group_runs(self, queue: TaskQueue) -> None:
        report.using(on_success=bill.invocation(tenant_id="tenant 7")).execute_on_commit()
        queue.run_until_idle()
        assert seen == [None, None]

    def test_lost_task_is_sent_again_in_its_group(self, queue: TaskQueue) -> None:
        bill.execute_on_commit(tenant_id=7)
        queue.crash_at("task:enter")
        queue.run()
        queue.clear()
        queue.advance(86_400)
        assert reap().sent_again == 1
        assert [job.group for job in queue.jobs] == ["7"]

    def test_scheduled_run_has_its_group(self) -> None:
        schedule = Every(minutes=5, kwargs={"tenant_id": 7})
        assert Entry("bills", bill, schedule).job(0, "default").group == "7"

    def test_record_runs_again_in_its_group(self, queue: TaskQueue) -> None:
        mail.execute_on_commit(tenant_id=7)
        queue.run_until_idle()
        run_again(TaskRecord.objects.get())
        assert [job.group for job in queue.jobs] == ["mail-7"]

    def test_record_with_a_wrong_group_runs_again(self, queue: TaskQueue) -> None:
        bill.execute_on_commit(tenant_id=7)
        queue.run_until_idle()
        TaskRecord.objects.update(kwargs={"tenant_id": "tenant 7"})
        run_again(TaskRecord.objects.get())
        assert [job.group for job in queue.jobs] == [None]


@pytest.mark.databases(transaction=True)
class TestOutbox:
    def test_group_survives_a_death_after_commit(self, database: str, settings: Any) -> None:
        courier = use_outbox(settings, database)

        def die_after_commit(point: str) -> None:
            if point == "enqueue:after_commit":
                raise failpoints.WorkerKilled

        killed = pytest.raises(failpoints.WorkerKilled)
        with patch.object(failpoints, "reached", die_after_commit), killed, transaction.atomic(using=database):
            bill.using(database=database, group="trial").execute_on_commit(tenant_id=7)
        assert courier.jobs == []
        outbox().relay()
        assert [job.group for job in courier.jobs] == ["trial"]

    def test_row_of_another_program_loses_a_wrong_group(self, database: str, settings: Any) -> None:
        courier = use_outbox(settings, database)
        courier.away.add("default")
        bill.using(database=database).execute_on_commit(tenant_id=7)
        [row] = rows(database)
        OutboxMessage.objects.using(database).update(attributes={**row.attributes, GROUP_ATTRIBUTE: "a b"})
        [row] = rows(database)
        job = job_of(row, now=row.created_at, max_delay=900, database=database)
        assert job.group is None

    def test_replaced_call_has_the_group_of_its_arguments(self, database: str, settings: Any) -> None:
        use_outbox(settings, database)
        for tenant_id in (7, 8):
            newest.using(database=database, delay=86_400).execute_on_commit(tenant_id=tenant_id)
        assert [row.attributes[GROUP_ATTRIBUTE] for row in rows(database)] == ["8"]
