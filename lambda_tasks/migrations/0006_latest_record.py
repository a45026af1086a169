from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("lambda_tasks", "0005_default_of_takeovers")]

    operations = [
        # This runs no SQL.
        migrations.AlterModelOptions(
            name="taskrecord",
            options={
                "get_latest_by": "start_time",
                "verbose_name": "task record",
                "verbose_name_plural": "task records",
            },
        ),
    ]
