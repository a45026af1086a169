from django.db import migrations, models

from lambda_tasks.database.online import CreateTable


class Migration(migrations.Migration):
    dependencies = [("lambda_tasks", "0012_enqueued_tasks")]

    operations = [
        CreateTable(
            name="StoredArguments",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False, verbose_name="key")),
                ("content", models.TextField(editable=False, verbose_name="arguments")),
                ("used_at", models.DateTimeField(db_index=True, editable=False, verbose_name="last used")),
            ],
            options={
                "verbose_name": "stored arguments",
                "verbose_name_plural": "stored arguments",
            },
        ),
    ]
