from django.db import migrations, models

from lambda_tasks.database.online import BuildIndex, DropIndex


class Migration(migrations.Migration):
    atomic = False  # indexes are built concurrently

    dependencies = [("lambda_tasks", "0002_queue_of_record")]

    operations = [
        BuildIndex(
            model_name="taskrecord",
            index=models.Index(
                condition=models.Q(("n_retries__gt", 0)), fields=["root_id"], name="lambda_tasks_retries"
            ),
        ),
        DropIndex(model_name="taskrecord", name="lambda_tasks_root"),
    ]
