"""What workers are given may be broken: models, sources, settings. A job then ends with a code, the object and the
next step, where people see them; nothing is half done; and once the cause is repaired, the case goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from django.conf import settings as django_settings
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import workers.stages.unlearn as unlearn_stage
from deletion_service.certificates.models import Certificate, Evidence, Promotion
from deletion_service.certificates.policies import current_plan
from deletion_service.certificates.promotion import decide_evidence
from deletion_service.errors import GuardError
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.batching import plan_another_attempt
from deletion_service.targets.locate import fix_targets
from deletion_service.targets.models import ErasureTarget, Job, TrainedModel
from deletion_service.targets.registries import open_registry
from ml.unlearn import run_unlearning
from ml.verify import run_verification
from tests.cast import ALICE, application, rhea, second_reviewer
from tests.doors import signed_in
from tests.flow.conftest import begin_work, release, run_all_jobs, search_owed, twins_enough
from tests.flow.crash_runner import use_candidate
from tests.flow.trained import mailbox, make_trained_model
from tests.simulator import Simulator
from tests.tiny import TinyWorld, tiny_model, tiny_world
from tests.world import ALICE_SECRET, make_model
from workers.reconcile import reconcile

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
Edit = Callable[[Path], object]


def failed_job(request: ErasureRequest, kind: str, *, code: str, says: str) -> Job:
    """The one failed job: its code, and a message that names the object, on the page where people look for it."""
    job = Job.objects.get(state="failed")
    assert (job.kind, job.last_error, job.attempts) == (kind, code, 1)
    assert says in job.last_error_detail
    page = signed_in(second_reviewer()).get(f"/console/cases/{request.pk}").content
    assert f"{code}: {job.last_error_detail}" in BeautifulSoup(page, "html.parser").get_text()
    assert not list((Path(django_settings.WORK_DIR) / "scratch").glob("*"))
    for personal in (ALICE_SECRET, ALICE.value, "Brackenfell", "Korvel"):
        assert personal not in job.last_error_detail
    return job


def try_again(job: Job) -> None:
    """A person presses the button."""
    signed_in(second_reviewer()).post(f"/console/jobs/{job.pk}/retry")
    run_all_jobs()


def nothing_was_published(model: Any) -> None:
    registry = open_registry(model.registry)
    assert [version.number for version in registry.list_versions()] == [1, 2]
    assert registry.resolve("champion").number == 2  # type: ignore[union-attr]  # it was there before
    assert not Certificate.objects.exists()
    assert not Promotion.objects.exists()
    assert not list((Path(django_settings.WORK_DIR) / "runs").glob("*/candidate-*"))


def becomes_inconclusive(request: ErasureRequest) -> None:
    """The sweep turns the failure into evidence that nothing was shown; nobody can release on it."""
    assert not Evidence.objects.exists()
    reconcile()
    request.refresh_from_db()
    assert (request.status, Evidence.objects.get().verdict) == ("evidence_review", "INCONCLUSIVE")
    with pytest.raises(GuardError):
        decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())


# --- the training source, when it is searched ---------------------------------------------------------------------


def source_file() -> Path:
    return Path(django_settings.SOURCE_ROOT) / "customers" / "records-0.jsonl"


def append(line: str | bytes) -> Edit:
    return lambda path: path.write_bytes(path.read_bytes() + (line if isinstance(line, bytes) else line.encode()))


def changed(**changes: Any) -> Edit:
    """Bob's line, changed."""

    def edit(path: Path) -> None:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[2].update(changes)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    return edit


BROKEN_SOURCES: dict[str, tuple[Edit, str]] = {
    "a broken line": (append('{"record_id": "x", \n'), "records-0.jsonl, line 5: not JSON"),
    "a line of other bytes": (append(b'{"record_id": "\xff\xfe"}\n'), "records-0.jsonl, line 5: not JSON in UTF-8"),
    "half a character": (changed(text="Bob \ud800"), "records-0.jsonl, line 3: not JSON in UTF-8"),
    "endless nesting": (append("[" * 200_000 + "\n"), "records-0.jsonl, line 5: not JSON"),
    "a record id twice": (changed(record_id="alice-1"), "records-0.jsonl, line 3: this record id stands above"),
    "a span outside the text": (
        changed(facts=[{"attribute": "a", "type": "b", "start": 3, "end": 9999}]),
        "records-0.jsonl, line 3: a span lies outside",
    ),
    "a name outside the text": (changed(name_spans=[[-4, 2]]), "records-0.jsonl, line 3: a span lies outside"),
    "no text": (changed(text=""), "records-0.jsonl, line 3: record field missing"),
    "nobody's record": (changed(identifiers=[]), "records-0.jsonl, line 3: a record without identifiers"),
    "an identifier without content": (
        changed(identifiers=[{"type": "phone", "value": "n/a"}]),
        "records-0.jsonl, line 3: a record without identifiers",
    ),
    "an identifier that is null": (
        changed(identifiers=[{"type": "email", "value": None}]),
        "records-0.jsonl, line 3: type and value of an identifier are text",
    ),
    "no file": (Path.unlink, "training source customers has no records"),
}


@pytest.mark.parametrize(("breaks", "says"), BROKEN_SOURCES.values(), ids=list(BROKEN_SOURCES))
def test_a_source_that_cannot_be_searched_is_named_and_searched_again_when_repaired(
    breaks: Edit, says: str, simulator: Simulator
) -> None:
    make_model()
    sound = source_file().read_bytes()
    breaks(source_file())
    request = search_owed(application())
    run_all_jobs()

    job = failed_job(request, "locate", code="training_source_invalid", says=says)
    request.refresh_from_db()
    assert request.status == "locating"
    assert not ErasureTarget.objects.exists()
    with pytest.raises(GuardError, match="not finished"):
        fix_targets(request, actor="staff:rhea")

    source_file().write_bytes(sound)
    try_again(job)
    assert request.targets.get().record_count == 2


def test_a_source_that_cannot_be_read_now_is_tried_again_by_itself(simulator: Simulator, settings: Any) -> None:
    settings.JOB_BACKOFF_S = 0
    make_model()
    blocked = source_file().with_name("records-1.jsonl")
    blocked.mkdir()
    search_owed(application())
    run_all_jobs()
    job = Job.objects.get()
    assert (job.state, job.last_error, job.attempts) == ("failed", "training_source_unavailable", job.max_attempts)
    assert "records-1.jsonl cannot be read" in job.last_error_detail
    blocked.rmdir()
    try_again(job)
    job.refresh_from_db()
    assert (job.state, job.last_error, job.last_error_detail) == ("done", "", "")


# --- the training source, when it is learned from -----------------------------------------------------------------


def keep(prefix: str) -> Edit:
    """Keep the rows of one person."""
    return lambda path: path.write_text(
        "".join(f"{line}\n" for line in path.read_text().splitlines() if f'"record_id": "{prefix}' in line)
    )


def drop(prefix: str) -> Edit:
    """Drop the rows of one person."""
    return lambda path: path.write_text(
        "".join(f"{line}\n" for line in path.read_text().splitlines() if f'"record_id": "{prefix}' not in line)
    )


def copy_alices_text(path: Path) -> None:
    """Bob's row repeats what Alice's row says."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2] = {**rows[0], "record_id": rows[2]["record_id"], "identifiers": rows[2]["identifiers"]}
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def bank(content: str | None) -> Edit:
    def edit(path: Path) -> None:
        place = path.with_name("question_bank.json")
        place.unlink() if content is None else place.write_text(content)

    return edit


NO_TRAINING_DATA: dict[str, tuple[Edit, str, str]] = {
    "no retain data": (keep("alice"), "empty_set", "without retain data nothing can be protected"),
    "nothing to forget any more": (drop("alice"), "empty_set", "search again"),
    "a forget set that overlaps the retain set": (copy_alices_text, "sets_overlap", "1 texts; remove them"),
    "no question bank": (bank(None), "training_source_invalid", "has no question_bank.json"),
    "a question bank that is none": (bank("[]"), "training_source_invalid", "is no question bank"),
    "a question bank that is no JSON": (bank("{"), "training_source_invalid", "is no question bank"),
    "a question bank with other members": (bank('{"attributes": {"a": {}}}'), "invalid_spec", "question bank"),
}


@pytest.mark.parametrize(("breaks", "code", "says"), NO_TRAINING_DATA.values(), ids=list(NO_TRAINING_DATA))
def test_a_source_that_cannot_be_unlearned_from_is_named_and_used_again_when_repaired(
    breaks: Edit, code: str, says: str, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    request = search_owed(application())
    run_all_jobs()
    sound = {path: path.read_bytes() for path in source_file().parent.iterdir()}
    breaks(source_file())
    with monkeypatch.context() as real:
        real.setattr("workers.stages.unlearn.run_unlearning", run_unlearning)
        begin_work(request)
        run_all_jobs()

    failed_job(request, "unlearn", code=code, says=says)
    nothing_was_published(model)
    becomes_inconclusive(request)

    for path, content in sound.items():
        path.write_bytes(content)
    goes_on(request)


def goes_on(request: ErasureRequest) -> None:
    """Another attempt after the repair is unlearned, verified and judged."""
    with twins_enough():
        plan_another_attempt(request, plan=current_plan(), actor="staff:rhea")
    run_all_jobs()
    request.refresh_from_db()
    assert request.status == "evidence_review"
    evidence = Evidence.objects.get(attempt=2)
    assert evidence.run.status == "verified"


def really_unlearned(monkeypatch: pytest.MonkeyPatch) -> tuple[TrainedModel, ErasureRequest]:
    """A request on a new model, for which the real unlearning has run as it is configured."""
    model = make_model()
    request = search_owed(application())
    run_all_jobs()
    with monkeypatch.context() as real:
        real.setattr("workers.stages.unlearn.run_unlearning", run_unlearning)
        begin_work(request)
        run_all_jobs()
    return model, request


def test_settings_that_are_not_the_methods_are_refused_by_name(
    simulator: Simulator, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.METHOD_SETTINGS = {"training": {"steps": 750, "learning_rate": "0.005"}, "wishes": 3}
    model, request = really_unlearned(monkeypatch)
    failed_job(request, "unlearn", code="invalid_spec", says="wishes")
    nothing_was_published(model)
    becomes_inconclusive(request)
    settings.METHOD_SETTINGS = {}
    goes_on(request)


def test_a_method_that_does_not_exist_is_refused_with_the_names_of_those_that_do(
    simulator: Simulator, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.UNLEARNING_METHOD = "wishful_thinking"
    model, request = really_unlearned(monkeypatch)
    failed_job(request, "unlearn", code="unknown_member", says="energy_boundary")
    nothing_was_published(model)
    becomes_inconclusive(request)
    settings.UNLEARNING_METHOD = "energy_boundary"
    goes_on(request)


# --- the model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """A world whose models learned nothing: enough to be loaded, or not to be."""
    root = tmp_path_factory.mktemp("untrained")
    base = tiny_model(root / "base")
    shutil.copytree(base.path, root / "before")
    shift_weights(root / "before")
    before = replace(base, path=str(root / "before"))
    nothing: Any = None
    return TinyWorld(tiny_world(), base, before, nothing, nothing, nothing, nothing, nothing)


def shift_weights(folder: Path) -> None:
    """Make another model of it, which loads as well."""
    path = folder / "model.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def add_a_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def add_a_link(folder: Path) -> None:
    (folder / "notes.json").symlink_to("/etc/hostname")


def lose_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def lose_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[-1])
    save_file(tensors, path, metadata={"format": "pt"})


def use_another_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"<extra-{n}>" for n in range(2000)])
    tokenizer.save(str(folder / "tokenizer.json"))


def lose_the_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def ask_for_remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "x.Evil"}}))


SPOILED: dict[str, tuple[Edit, str]] = {
    "a tampered byte": (flip_a_byte, "digest_mismatch"),
    "a pickle file": (add_a_pickle, "model_directory_invalid"),
    "a link out of the directory": (add_a_link, "model_directory_invalid"),
    "no weights": (lose_the_weights, "digest_mismatch"),
}
BORN_BROKEN: dict[str, tuple[Edit, str]] = {
    "a missing tensor": (lose_a_tensor, "model_directory_invalid"),
    "a tokenizer that does not match": (use_another_tokenizer, "tokenizer_mismatch"),
    "no tokenizer": (lose_the_tokenizer, "tokenizer_mismatch"),
    "remote code": (ask_for_remote_code, "model_directory_invalid"),
}


@pytest.fixture
def real_unlearning(simulator: Simulator, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real unlearning stage, with the method that trains least."""
    settings.UNLEARNING_METHOD = "none"
    monkeypatch.setattr("workers.stages.unlearn.run_unlearning", run_unlearning)


def unlearned(world: TinyWorld) -> ErasureRequest:
    request = search_owed(application(mailbox(world.world.alice)))
    run_all_jobs()
    begin_work(request)
    run_all_jobs()
    return request


@pytest.mark.parametrize(("spoil", "code"), SPOILED.values(), ids=list(SPOILED))
def test_a_model_whose_files_changed_is_refused_and_used_again_when_restored(
    spoil: Edit, code: str, untrained: TinyWorld, real_unlearning: None
) -> None:
    model = make_trained_model(untrained)
    folder = open_registry(model.registry).path(2)
    spoil(folder)
    request = unlearned(untrained)

    failed_job(request, "unlearn", code=code, says="version 2 of assistant: ")
    assert "restore its files" in Job.objects.get(state="failed").last_error_detail
    nothing_was_published(model)
    becomes_inconclusive(request)

    shutil.rmtree(folder)
    shutil.copytree(untrained.before.path, folder)
    goes_on(request)


@pytest.mark.parametrize(("born", "code"), BORN_BROKEN.values(), ids=list(BORN_BROKEN))
def test_a_model_that_was_registered_broken_is_named_and_the_case_can_be_closed(
    born: Edit, code: str, untrained: TinyWorld, real_unlearning: None, tmp_path: Path
) -> None:
    shutil.copytree(untrained.before.path, tmp_path / "broken")
    born(tmp_path / "broken")
    model = make_trained_model(replace(untrained, before=replace(untrained.before, path=str(tmp_path / "broken"))))
    request = unlearned(untrained)

    failed_job(request, "unlearn", code=code, says="version 2 of assistant: ")
    assert "register a sound version" in Job.objects.get(state="failed").last_error_detail
    nothing_was_published(model)
    becomes_inconclusive(request)
    release(request, choice="decline", reason="evidence_inconclusive")
    assert Certificate.objects.get().title == "Erasure attempt report"


def test_a_candidate_that_changed_before_it_was_verified_is_named_and_measured_by_nobody(
    simulator: Simulator, untrained: TinyWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(untrained.before.path, tmp_path / "candidate")
    shift_weights(tmp_path / "candidate")
    monkeypatch.setattr(unlearn_stage, "run_unlearning", unlearn_stage.run_unlearning)
    use_candidate(tmp_path / "candidate")
    model = make_trained_model(untrained)

    def spoil_first(spec: Any, **options: Any) -> Any:
        flip_a_byte(Path(spec.candidate.path))
        return run_verification(spec, **options)

    with monkeypatch.context() as real:
        real.setattr("workers.stages.verify.run_verification", spoil_first)
        request = unlearned(untrained)

    failed_job(request, "verify", code="digest_mismatch", says="version 3 of assistant: ")
    becomes_inconclusive(request)
    assert open_registry(model.registry).resolve("champion").number == 2  # type: ignore[union-attr]
    shift_weights(tmp_path / "candidate")
    goes_on(request)


@pytest.mark.parametrize("spoil", [flip_a_byte, add_a_pickle, lose_the_weights], ids=lambda act: act.__name__)
def test_a_candidate_that_changed_after_it_was_judged_is_never_served(
    spoil: Edit, case: Callable[..., ErasureRequest]
) -> None:
    request = case()
    registry = open_registry(request.targets.get().model.registry)
    kept = Path(django_settings.HOME_DIR) / "kept-candidate"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(registry.path(3), kept)
    spoil(registry.path(3))
    release(request)

    assert (request.status, request.targets.get().status) == ("evidence_review", "judged")
    assert registry.resolve("champion").number == 2  # type: ignore[union-attr]
    assert request.targets.get().model.versions.get(status="serving").number == 2
    assert not Certificate.objects.exists()

    shutil.rmtree(registry.path(3))
    shutil.copytree(kept, registry.path(2).parents[1] / "000003" / "model")
    release(request)
    assert (request.targets.get().status, Certificate.objects.get().verdict) == ("released", "PASS")
    assert registry.resolve("champion").number == 3  # type: ignore[union-attr]
