from django.db import migrations, models

from lambda_tasks.database.online import CreateTable


class Migration(migrations.Migration):
    dependencies = [("lambda_tasks", "0011_admin_permissions")]

    operations = [
        CreateTable(
            name="EnqueuedTask",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False, verbose_name="message id")),
                ("task_name", models.CharField(editable=False, max_length=255, verbose_name="task")),
                ("kwargs", models.JSONField(default=dict, editable=False, verbose_name="arguments")),
                ("backend", models.CharField(editable=False, max_length=255, verbose_name="backend")),
                ("queue_name", models.CharField(editable=False, max_length=255, verbose_name="queue")),
                ("run_after", models.DateTimeField(editable=False, null=True, verbose_name="delayed until")),
                ("enqueued_at", models.DateTimeField(editable=False, verbose_name="enqueued")),
            ],
            options={
                "verbose_name": "enqueued task",
                "verbose_name_plural": "enqueued tasks",
                "indexes": [models.Index(fields=["enqueued_at"], name="lambda_tasks_enqueued")],
            },
        ),
    ]
