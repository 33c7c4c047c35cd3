"""Probes that a deployer keeps to test later versions are sealed as a class of their own."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('requests', '0004_version_unaccounted'),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name='sealeditem',
            name='sealed_item_class_is_known',
        ),
        migrations.AlterField(
            model_name='sealeditem',
            name='data_class',
            field=models.CharField(choices=[('A', 'payload'), ('B', 'identity proof'), ('C', 'contact'), ('V', 'verification probes')], max_length=1),
        ),
        migrations.AddConstraint(
            model_name='sealeditem',
            constraint=models.CheckConstraint(condition=models.Q(('data_class__in', ['A', 'B', 'C', 'V'])), name='sealed_item_class_is_known'),
        ),
    ]
