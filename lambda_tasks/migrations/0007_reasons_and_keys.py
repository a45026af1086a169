from django.db import migrations, models

from lambda_tasks.database.online import AddColumn, BuildIndex, CreateTable


class Migration(migrations.Migration):
    atomic = False  # indexes are built concurrently

    dependencies = [("lambda_tasks", "0006_latest_record")]

    operations = [
        CreateTable(
            name="CancelRequest",
            fields=[
                (
                    "root_id",
                    models.UUIDField(
                        editable=False, primary_key=True, serialize=False, verbose_name="first invocation"
                    ),
                ),
                ("requested_at", models.DateTimeField(verbose_name="requested")),
            ],
            options={
                "verbose_name": "request to cancel",
                "verbose_name_plural": "requests to cancel",
            },
        ),
        CreateTable(
            name="TaskSchedule",
            fields=[
                (
                    "key",
                    models.CharField(
                        editable=False, max_length=255, primary_key=True, serialize=False, verbose_name="schedule"
                    ),
                ),
                ("task_name", models.CharField(max_length=255, verbose_name="task")),
                ("last_tick", models.BigIntegerField(verbose_name="last run")),
                ("paused", models.BooleanField(default=False, verbose_name="paused")),
            ],
            options={
                "verbose_name": "schedule",
                "verbose_name_plural": "schedules",
            },
        ),
        CreateTable(
            name="UniqueKey",
            fields=[
                (
                    "key",
                    models.CharField(
                        editable=False, max_length=64, primary_key=True, serialize=False, verbose_name="key"
                    ),
                ),
                ("task_name", models.CharField(max_length=255, verbose_name="task")),
                ("message_id", models.UUIDField(editable=False, verbose_name="message id")),
                ("expires_at", models.DateTimeField(verbose_name="expires")),
            ],
            options={
                "verbose_name": "unique key",
                "verbose_name_plural": "unique keys",
            },
        ),
        AddColumn(
            model_name="taskrecord",
            name="reason",
            field=models.CharField(
                blank=True,
                choices=[
                    ("ignored", "Ignored"),
                    ("skipped", "Skipped"),
                    ("replaced", "Replaced"),
                    ("error", "Error"),
                    ("max_retries", "Max Retries"),
                    ("lock", "Lock"),
                    ("retry_later", "Retry Later"),
                    ("soft_timeout", "Soft Timeout"),
                    ("hard_timeout", "Hard Timeout"),
                    ("expired", "Expired"),
                    ("cancelled", "Cancelled"),
                    ("crashed", "Crashed"),
                    ("lost", "Lost"),
                    ("broken", "Broken"),
                ],
                db_default="",
                default="",
                editable=False,
                max_length=16,
                verbose_name="reason",
            ),
        ),
        AddColumn(
            model_name="taskrecord",
            name="waiting_since",
            field=models.DateTimeField(blank=True, editable=False, null=True, verbose_name="waiting since"),
        ),
        BuildIndex(
            model_name="taskrecord",
            index=models.Index(
                condition=models.Q(("reason__gt", "")), fields=["reason", "start_time"], name="lambda_tasks_reason"
            ),
        ),
        BuildIndex(
            model_name="uniquekey",
            index=models.Index(fields=["expires_at"], name="lambda_tasks_expires"),
        ),
    ]
