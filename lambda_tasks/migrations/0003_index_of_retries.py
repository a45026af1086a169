from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("lambda_tasks", "0002_queue_of_record")]

    operations = [
        migrations.RemoveIndex(model_name="taskrecord", name="lambda_tasks_root"),
        migrations.AddIndex(
            model_name="taskrecord",
            index=models.Index(
                condition=models.Q(("n_retries__gt", 0)), fields=["root_id"], name="lambda_tasks_retries"
            ),
        ),
    ]
