from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("lambda_tasks", "0010_rerun")]

    operations = [
        migrations.CreateModel(
            name="TasksOverview",
            fields=[],
            options={
                "verbose_name": "tasks overview",
                "verbose_name_plural": "tasks overview",
                "proxy": True,
                "default_permissions": ("view",),
                "indexes": [],
                "constraints": [],
            },
            bases=("lambda_tasks.taskrecord",),
        ),
        migrations.AlterModelOptions(
            name="taskrecord",
            options={
                "get_latest_by": "start_time",
                "permissions": (
                    ("run_again_taskrecord", "Can run tasks again"),
                    ("cancel_taskrecord", "Can cancel tasks"),
                    ("export_taskrecord", "Can export task records"),
                ),
                "verbose_name": "task record",
                "verbose_name_plural": "task records",
            },
        ),
    ]
