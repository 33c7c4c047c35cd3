"""A job names its checkpoint with the digest of its bytes."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('requests', '0007_known_words'),
        ('targets', '0009_known_words'),
    ]

    operations = [
        migrations.AddField(
            model_name='job',
            name='checkpoint_sha256',
            field=models.CharField(blank=True, default='', max_length=64),
        ),
        # A name without a digest cannot be checked; such a run begins again.
        migrations.RunSQL("UPDATE targets_job SET checkpoint = ''", migrations.RunSQL.noop),
        migrations.AddConstraint(
            model_name='job',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('checkpoint', ''), ('checkpoint_sha256', '')), models.Q(models.Q(('checkpoint', ''), _negated=True), models.Q(('checkpoint_sha256', ''), _negated=True)), _connector='OR'), name='job_checkpoint_has_a_digest'),
        ),
    ]
