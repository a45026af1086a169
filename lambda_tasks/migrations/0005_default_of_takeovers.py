from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("lambda_tasks", "0004_outbox")]

    operations = [
        migrations.AlterField(
            model_name="taskrecord",
            name="takeovers",
            field=models.PositiveIntegerField(db_default=0, default=0, verbose_name="crashes"),
        ),
    ]
