"""What the import contracts cannot say: processes, environments, tables and names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.apps import apps
from django.db.models import CheckConstraint, Q

from deletion_service.dispatch import TASK_NAMES
from deletion_service.requests.statuses import MOVES, RequestStatus
from deletion_service.targets.statuses import OWED_IN, TARGET_MOVES, JobKind, TargetStatus
from workers.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("deletion_service", "workers", "ml", "demo")


def sources(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from (path for path in (ROOT / package).rglob("*.py"))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_web_process_never_loads_the_machine_learning_libraries() -> None:
    code = (
        "import deletion_service.wsgi, sys\n"
        "from django.urls import get_resolver; get_resolver().url_patterns\n"
        "heavy = {'torch', 'transformers', 'peft', 'accelerate', 'safetensors', 'numpy', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_steward_runs_without_the_machine_learning_libraries() -> None:
    """Letters, disposals and clocks depend on it, and its image has none of them."""
    code = (
        "import sys\n"
        "absent = ('torch', 'transformers', 'peft', 'accelerate', 'safetensors', 'numpy', 'scipy')\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "import workers.celery, workers.reconcile\n"
        "assert len(workers.reconcile.STEPS) > 10\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_offline_verifier_needs_one_library() -> None:
    code = (
        "import sys; import deletion_service.certificates.verify, deletion_service.cli\n"
        "outside = {'django', 'rest_framework', 'celery', 'ulid', 'structlog', 'httpx', 'jsonschema', 'torch'}\n"
        "assert not outside & set(sys.modules), outside & set(sys.modules)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr[-2000:]


def test_every_task_that_the_service_rings_is_registered() -> None:
    from workers.celery import app

    assert set(TASK_NAMES) <= set(app.tasks)


def test_every_job_kind_has_a_stage_and_a_status_that_owes_it() -> None:
    assert set(STAGES) == set(JobKind.values) == set(OWED_IN)


def test_the_move_tables_know_every_status() -> None:
    assert set(MOVES) == set(RequestStatus.values)
    assert set(TARGET_MOVES) == set(TargetStatus.values)
    for table in (MOVES, TARGET_MOVES):
        assert {new for allowed in table.values() for new in allowed} <= set(table)


def test_the_database_knows_every_word_that_a_row_may_come_to_hold() -> None:
    """`choices` constrain forms, not rows. Rows that are written once are left out: no later write can spoil them."""
    loose = []
    for model in apps.get_models():
        if not model.__module__.startswith("deletion_service.") or "Append-only" in (model.__doc__ or ""):
            continue
        checks = [c.condition for c in model._meta.constraints if isinstance(c, CheckConstraint)]
        # A list that stands alone, not one side of an "or": that one would be a rule for some rows only.
        alone = [check.children[0] for check in checks if isinstance(check, Q) and len(check.children) == 1]
        listed = [(child[0].removesuffix("__in"), child[1]) for child in alone if child[0].endswith("__in")]
        known = {name: set(words) for name, words in listed}
        for field in model._meta.get_fields():
            words = {value for value, _ in getattr(field, "choices", None) or ()}
            if words and known.get(field.name, set()) - {""} != words:
                loose.append(f"{model.__name__}.{field.name}")
    assert loose == []


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in sources("deletion_service", "workers", "ml")
        if re.search(r"os\.(environ|getenv)", path.read_text())
    }
    allowed = {
        "deletion_service/settings.py",
        "deletion_service/wsgi.py",
        "deletion_service/cli.py",
        "workers/celery.py",
        "ml/plugins.py",  # a library has no settings: every process that compares values must know the same kinds
    }
    assert {name for name in readers if not name.startswith("deletion_service/cli")} <= allowed


def _dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) if {name.name for name in names} & {"pickle", "joblib", "dill", "shelve"}:
                yield node.lineno, "a module that unpickles"
            case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save"):
                yield node.lineno, "torch.load or torch.save"
            case ast.Call(func=ast.Name(id="eval" | "exec")):
                yield node.lineno, "eval or exec"
            case ast.keyword(arg="shell" | "trust_remote_code", value=ast.Constant(value=True)):
                yield node.value.lineno, "shell or remote code"


def test_nothing_unpickles_evaluates_or_runs_a_shell() -> None:
    guilty = [
        f"{path.relative_to(ROOT)}:{line} {what}"
        for path in sources(*PACKAGES)
        for line, what in _dangers(ast.parse(path.read_text()))
    ]
    assert guilty == []


def test_the_search_for_dangers_finds_them() -> None:
    code = "import pickle\ntorch.load(p)\neval(x)\nrun(c, shell=True)\nmodel.eval()"
    assert sorted(line for line, _ in _dangers(ast.parse(code))) == [1, 2, 3, 4]


def test_functions_stay_short() -> None:
    long = []
    for path in sources(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 60:
                    long.append(f"{path.relative_to(ROOT)}:{node.name} {length}")
    assert long == []


def test_no_file_is_named_after_nothing() -> None:
    names = {path.stem for path in sources(*PACKAGES)}
    assert not names & {"utils", "util", "helpers", "services", "misc", "common"}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-web.lock", "requirements-quantised.lock"])
def test_every_locked_package_has_a_hash_and_no_host(lock: str) -> None:
    text = (ROOT / lock).read_text()
    for block in re.split(r"\n(?=[a-z])", text):
        if "==" in block.split("\n")[0]:
            assert "--hash=sha256:" in block, block.split("\n")[0]
    assert "://" not in text


def test_the_web_lock_holds_no_machine_learning_library() -> None:
    packages = re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements-web.lock").read_text(), flags=re.MULTILINE)
    assert not {"torch", "transformers", "peft", "accelerate", "numpy", "scipy"} & set(packages)
