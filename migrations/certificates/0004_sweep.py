"""Sealed sweeps over earlier deletions."""

import deletion_service.ids
import django.db.models.deletion
import functools
from django.db import migrations, models

from deletion_service.audit.events import append_only


class Migration(migrations.Migration):

    dependencies = [
        ('certificates', '0003_revoked_and_discarded'),
        ('targets', '0007_ledger_append_only'),
    ]

    operations = [
        migrations.CreateModel(
            name='Sweep',
            fields=[
                ('id', models.CharField(default=functools.partial(deletion_service.ids.new_id, *('swp',), **{}), max_length=34, primary_key=True, serialize=False)),
                ('attempt', models.PositiveIntegerField()),
                ('earlier', models.PositiveIntegerField()),
                ('result', models.CharField(choices=[('PASS', 'PASS'), ('FAIL', 'FAIL'), ('INCONCLUSIVE', 'INCONCLUSIVE'), ('NOT_RUN', 'not run')], max_length=16)),
                ('reason', models.CharField(blank=True, choices=[('no_earlier_deletions', 'no earlier deletions'), ('error', 'the job failed')], default='', max_length=32)),
                ('document', models.BinaryField(blank=True, null=True)),
                ('sha256', models.CharField(blank=True, default='', max_length=64)),
                ('sealed_at', models.DateTimeField(auto_now_add=True)),
                ('target', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='sweeps', to='targets.erasuretarget')),
                ('version', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='sweeps', to='targets.modelversion')),
            ],
            options={
                'ordering': ('version', 'attempt'),
                'constraints': [models.UniqueConstraint(fields=('version', 'attempt'), name='sweep_attempt_is_unique_per_version'), models.CheckConstraint(condition=models.Q(models.Q(('document__isnull', False), ('earlier__gte', 1), ('reason', ''), ('result__in', ['PASS', 'FAIL', 'INCONCLUSIVE']), models.Q(('sha256', ''), _negated=True)), models.Q(('document', None), ('result', 'NOT_RUN'), ('sha256', ''), models.Q(('reason', ''), _negated=True)), _connector='OR'), name='sweep_has_sealed_evidence_or_a_reason_for_none'), models.CheckConstraint(condition=models.Q(models.Q(('reason', 'no_earlier_deletions'), _negated=True), ('earlier', 0), _connector='OR'), name='sweep_of_nobody_counts_nobody')],
            },
        ),
        append_only("certificates_sweep"),
    ]
