"""A ledger of deletions, what stands for each later on, and jobs about a version that no request is about."""

import django.db.models.deletion
from django.db import migrations, models



def enter_released(apps, schema_editor):
    """What was released before there was a ledger stands in it as well; nothing can stand for it any more."""
    events = apps.get_model("targets", "TargetEvent").objects.filter(new_status="released").order_by("id")
    numbers = {}
    for target in (event.target for event in events.select_related("target")):
        numbers[target.model_id] = numbers.get(target.model_id, 0) + 1
        apps.get_model("targets", "LedgerEntry").objects.create(
            target=target, model_id=target.model_id, number=numbers[target.model_id]
        )


class Migration(migrations.Migration):

    dependencies = [
        ('requests', '0005_vault_class'),
        ('targets', '0005_match_reviewer'),
    ]

    operations = [
        migrations.CreateModel(
            name='LedgerEntry',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('number', models.PositiveIntegerField()),
                ('entered_at', models.DateTimeField(auto_now_add=True)),
            ],
            options={
                'ordering': ('model', 'number'),
            },
        ),
        migrations.CreateModel(
            name='Sentinel',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('spike_in', 'spike-in'), ('vault', 'probe vault')], max_length=8)),
                ('mark', models.CharField(blank=True, default='', max_length=64)),
                ('probes', models.BinaryField(blank=True, null=True)),
                ('probes_sha256', models.CharField(max_length=64)),
                ('scores', models.JSONField(default=dict)),
                ('basis', models.CharField(blank=True, default='', max_length=200)),
                ('vault_days', models.PositiveSmallIntegerField(blank=True, null=True)),
                ('expires_on', models.DateField(blank=True, null=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
            ],
            options={
                'ordering': ('id',),
            },
        ),
        migrations.AddField(
            model_name='job',
            name='version',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='jobs', to='targets.modelversion'),
        ),
        migrations.AlterField(
            model_name='job',
            name='kind',
            field=models.CharField(choices=[('locate', 'locate'), ('unlearn', 'unlearn'), ('verify', 'verify'), ('sweep', 'test earlier deletions again'), ('promote', 'promote'), ('retire', 'retire'), ('dispose', 'dispose'), ('certify', 'certify'), ('notify', 'notify')], max_length=16),
        ),
        migrations.AlterField(
            model_name='job',
            name='request',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='jobs', to='requests.erasurerequest'),
        ),
        migrations.AddConstraint(
            model_name='job',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('request__isnull', False), ('version', None)), models.Q(('kind', 'sweep'), ('request', None), ('run', None), ('target', None), ('version__isnull', False)), _connector='OR'), name='job_is_about_a_request_or_a_version_from_outside'),
        ),
        migrations.AddConstraint(
            model_name='job',
            constraint=models.UniqueConstraint(condition=models.Q(('version__isnull', False)), fields=('version', 'kind', 'round'), name='job_once_per_version_and_round'),
        ),
        migrations.AddField(
            model_name='ledgerentry',
            name='model',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='ledger', to='targets.trainedmodel'),
        ),
        migrations.AddField(
            model_name='ledgerentry',
            name='target',
            field=models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, related_name='ledger_entry', to='targets.erasuretarget'),
        ),
        migrations.AddField(
            model_name='sentinel',
            name='target',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='sentinels', to='targets.erasuretarget'),
        ),
        migrations.AddConstraint(
            model_name='ledgerentry',
            constraint=models.UniqueConstraint(fields=('model', 'number'), name='ledger_number_is_unique_per_model'),
        ),
        migrations.AddConstraint(
            model_name='ledgerentry',
            constraint=models.CheckConstraint(condition=models.Q(('number__gte', 1)), name='ledger_is_numbered_from_one'),
        ),
        migrations.AddConstraint(
            model_name='sentinel',
            constraint=models.UniqueConstraint(fields=('target', 'kind'), name='sentinel_once_per_target_and_kind'),
        ),
        migrations.AddConstraint(
            model_name='sentinel',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('basis', ''), ('expires_on', None), ('kind', 'spike_in'), ('probes__isnull', False), ('vault_days', None), models.Q(('mark', ''), _negated=True)), models.Q(('expires_on__isnull', False), ('kind', 'vault'), ('mark', ''), ('probes', None), ('vault_days__gte', 1), ('vault_days__isnull', False), ('vault_days__lte', 90), models.Q(('basis', ''), _negated=True)), _connector='OR'), name='sentinel_is_a_spike_in_or_a_vault_with_basis_and_end'),
        ),
        migrations.RunPython(enter_released, migrations.RunPython.noop),
    ]
