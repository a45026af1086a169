from django.db import migrations, models

from lambda_tasks.database.online import CreateTable


class Migration(migrations.Migration):
    dependencies = [("lambda_tasks", "0008_progress")]

    operations = [
        CreateTable(
            name="TaskFlow",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False, verbose_name="id")),
                (
                    "kind",
                    models.CharField(
                        choices=[("call", "Call"), ("chain", "Chain"), ("group", "Group")],
                        editable=False,
                        max_length=8,
                        verbose_name="kind",
                    ),
                ),
                ("task_name", models.CharField(editable=False, max_length=255, verbose_name="first task")),
                ("size", models.PositiveIntegerField(editable=False, verbose_name="tasks")),
                ("steps", models.JSONField(default=list, editable=False, verbose_name="later steps")),
                ("on_success", models.JSONField(default=list, editable=False, verbose_name="on success")),
                ("on_failure", models.JSONField(default=list, editable=False, verbose_name="on failure")),
                ("created_at", models.DateTimeField(editable=False, verbose_name="created")),
                ("ended_at", models.DateTimeField(editable=False, null=True, verbose_name="ended")),
                ("failed", models.BooleanField(default=False, editable=False, verbose_name="failed")),
                ("cancelled_at", models.DateTimeField(editable=False, null=True, verbose_name="cancelled")),
                ("owed", models.JSONField(editable=False, null=True, verbose_name="to be sent")),
                ("owed_since", models.DateTimeField(editable=False, null=True, verbose_name="to be sent since")),
                ("debt", models.UUIDField(editable=False, null=True)),
            ],
            options={
                "verbose_name": "chain or group",
                "verbose_name_plural": "chains and groups",
                "indexes": [
                    models.Index(fields=["ended_at", "created_at"], name="lambda_tasks_flow_ended"),
                    models.Index(fields=["owed_since"], name="lambda_tasks_flow_owed"),
                ],
            },
        ),
        CreateTable(
            name="TaskFlowMember",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False, verbose_name="message id")),
                ("flow_id", models.UUIDField(editable=False, verbose_name="chain or group")),
                ("position", models.PositiveIntegerField(editable=False, verbose_name="position")),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("PENDING", "Pending"),
                            ("SUCCESS", "Success"),
                            ("FAILED", "Failed"),
                            ("SKIPPED", "Skipped"),
                        ],
                        default="PENDING",
                        editable=False,
                        max_length=8,
                        verbose_name="status",
                    ),
                ),
            ],
            options={
                "verbose_name": "member of a chain or a group",
                "verbose_name_plural": "members of chains and groups",
                "indexes": [models.Index(fields=["flow_id", "status", "id"], name="lambda_tasks_member")],
            },
        ),
    ]
