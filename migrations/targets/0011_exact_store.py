"""A version may have been folded from a store of adapters, which deletes exactly."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("targets", "0010_checkpoint_digest"),
    ]

    operations = [
        migrations.AddField(
            model_name="trainingmanifest",
            name="exact_store",
            field=models.CharField(blank=True, default="", max_length=64),
        ),
    ]
