from django.db import migrations, models

from lambda_tasks.database.online import CreateTable


class Migration(migrations.Migration):
    dependencies = [("lambda_tasks", "0007_reasons_and_keys")]

    operations = [
        CreateTable(
            name="TaskProgress",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False, verbose_name="message id")),
                ("done", models.BigIntegerField(verbose_name="done")),
                ("total", models.BigIntegerField(blank=True, null=True, verbose_name="total")),
                ("note", models.CharField(blank=True, default="", max_length=255, verbose_name="note")),
                ("updated_at", models.DateTimeField(verbose_name="updated")),
            ],
            options={
                "verbose_name": "progress",
                "verbose_name_plural": "progress",
            },
        ),
    ]
