from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("lambda_tasks", "0013_stored_arguments")]

    operations = [
        # Only the choices, so that the statement does not change the table.
        migrations.AlterField(
            model_name="taskrecord",
            name="reason",
            field=models.CharField(
                blank=True,
                choices=[
                    ("ignored", "Ignored"),
                    ("skipped", "Skipped"),
                    ("replaced", "Replaced"),
                    ("not_kept", "Not Kept"),
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
    ]
