from django.db import migrations, models

from lambda_tasks.database.online import CreateTable


class Migration(migrations.Migration):
    dependencies = [("lambda_tasks", "0009_flows")]

    operations = [
        CreateTable(
            name="TaskRerun",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False, verbose_name="message id")),
                ("original_id", models.UUIDField(db_index=True, editable=False, verbose_name="original")),
                ("rerun_at", models.DateTimeField(verbose_name="run again")),
                ("username", models.CharField(blank=True, default="", max_length=255, verbose_name="user")),
            ],
            options={
                "verbose_name": "rerun",
                "verbose_name_plural": "reruns",
            },
        ),
    ]
