"""`python -m demo [--seed N] [--method NAME] [--out DIR]`: the whole main job on this machine, from nothing."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from demo.bob import remembered
from demo.deployment import ROOT, DemoError, Deployment, free_port
from demo.page import report_page
from demo.progress import Screen
from demo.results import Measured, measure_gold, measured, summarise, table
from demo.story import Told, cast_story
from ml.errors import MlError
from ml.reference import ReferencePaths, build_reference
from ml.specs import Progress

MODEL: Final = "assistant"
POLICY: Final = "reference-2"
MARKER: Final = "deployment.json"
THREADS: Final = 1
"""Models this small gain little from a second thread and lose much when anything else runs beside it."""
PROCESSES: Final = 2
"""Two models are attacked at a time where there are two cores: no number changes, and little is lost on busy ones."""
_EXPECTED: Final = ("erased", "PASS", True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when Alice is erased by a PASS that verifies, 1 when not, 2 when the demonstration could not run."""
    options = _parser().parse_args(arguments)
    screen = Screen()
    try:
        summary = run(options, screen)
    except (DemoError, MlError) as exc:
        screen.say(f"demo: {exc}")
        return 2
    return 0 if (summary["outcome"], summary["verdict"], summary["certificate_verifies"]) == _EXPECTED else 1


def run(options: argparse.Namespace, screen: Screen) -> dict[str, Any]:
    """Build or take up the reference model, then play the story with it."""
    started = time.monotonic()
    _clear(options.out)
    reference = _reference(options, screen)
    settings = {"LETHE_METHOD": options.method, "LETHE_FIXED_SEED": str(options.seed), "LETHE_POLICY": POLICY}
    settings["LETHE_TORCH_THREADS"] = str(options.threads)
    settings["LETHE_COMPUTE_PROCESSES"] = str(min(PROCESSES, os.cpu_count() or 1))
    return play(options.out, reference, settings, screen=screen, gold=not options.skip_gold, started=started)


def play(
    out: Path, reference: ReferencePaths, settings: dict[str, str], *, screen: Screen, gold: bool, started: float
) -> dict[str, Any]:
    """Serve, play the story, check the signed document, measure gold, report; returns the summary.

    Args:
        settings: environment of the deployment; method, seed and policy stand there.
        started: when the run began, by the monotonic clock.
    """
    built = time.monotonic()
    deployment = Deployment(out, free_port(), settings)
    _prepare(deployment, reference)
    who = json.loads(reference.world.read_text(encoding="utf-8"))
    try:
        deployment.start()
        told = cast_story(deployment, screen).tell(name=who["alice"]["name"], email=who["alice"]["email"])
    finally:
        deployment.stop()
    ours = measured(told.evidence)
    _leave(out, told)
    best = _gold(reference, deployment, ours, screen) if gold else None
    summary = summarise(told, ours, best, registry=deployment.registry)
    summary |= {"method": settings["LETHE_METHOD"], "seed": int(settings["LETHE_FIXED_SEED"])}
    summary["bob"] = _bob(reference, who["bob"]["person"], summary)
    whole = {"reference_model": built - started, "total": time.monotonic() - started}
    summary["seconds"] = {name: round(seconds, 1) for name, seconds in whole.items()}
    summary["certificate_verifies"], checked = _check(out, summary, screen)
    (out / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "report.html").write_text(report_page(summary, ours, best, checked=checked), encoding="utf-8")
    _show(out, summary, ours, best, screen)
    return summary


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Play the main job with a model made here.")
    parser.add_argument("--seed", type=int, default=7, help="decides people, values and weights")
    parser.add_argument("--method", default="energy_boundary", help="deletion method; `none` deletes nothing")
    parser.add_argument("--out", type=_path, default=ROOT / "var" / "demo", help="directory of the deployment")
    parser.add_argument("--reference", type=Path, help="where the reference model is kept between runs")
    parser.add_argument("--preset", default="demo", help="size of the reference model")
    parser.add_argument("--threads", type=int, default=THREADS, help="threads of unlearning and of each verification")
    parser.add_argument("--skip-gold", action="store_true", help="do not measure the gold model")
    return parser


def _path(text: str) -> Path:
    return Path(text).resolve()


def _clear(out: Path) -> None:
    """Remove what an earlier run left; refuse to remove anything else."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            raise DemoError(f"{out} holds something else; name an empty directory with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("{}\n", encoding="utf-8")


def _reference(options: argparse.Namespace, screen: Screen) -> ReferencePaths:
    root = options.reference or ROOT / "var" / "reference" / f"{options.preset}-{options.seed}"
    root.mkdir(parents=True, exist_ok=True)
    screen.say(f"Reference model: people who do not exist, trained from nothing (kept in {_near(root)}).")

    def shown(progress: Progress) -> None:
        screen.bar(progress.phase, progress.done, progress.total)

    return build_reference(
        root, preset=options.preset, seed=options.seed, threads=os.cpu_count() or 1, on_progress=shown
    )


def _prepare(deployment: Deployment, reference: ReferencePaths) -> None:
    """Keys, database, training source, and the registered model; the address of the pages is noted for later."""
    marker = {"port": deployment.port, "settings": dict(deployment.settings)}
    (deployment.out / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
    source = deployment.home / "sources" / "customers"
    shutil.copytree(reference.training, source)
    shutil.copy(reference.bank, source / "question_bank.json")
    deployment.manage("create_keys")
    deployment.manage("migrate", "--verbosity", "0")
    base, before = (str(reference.model(name)) for name in ("base", "before"))
    deployment.manage("register_model", MODEL, "--base", base, "--model", before, "--source", source.name)
    # A source goes on growing: these people came after the model was trained.
    shutil.copy(reference.newcomers, source / "records-newcomers.jsonl")


def _leave(out: Path, told: Told) -> None:
    for name, content in (
        ("certificate.dsse.json", told.certificate),
        ("certificate.log.json", told.log_proof),
        ("evidence.json", told.evidence),
        ("issuer.json", told.issuer),
    ):
        (out / name).write_bytes(content)


def _gold(reference: ReferencePaths, deployment: Deployment, ours: Measured, screen: Screen) -> Measured:
    screen.say("Gold: the model that never learned from Alice is attacked under the same policy.")
    options = {"policy": deployment.settings["LETHE_POLICY"], "seed": ours.report.seeds["verification"]}
    options["threads"] = deployment.settings["LETHE_TORCH_THREADS"]
    options["processes"] = deployment.settings["LETHE_COMPUTE_PROCESSES"]
    return measure_gold(reference, deployment.out / "gold", options, screen=screen)


def _bob(reference: ReferencePaths, person: str, summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    models = {"before": reference.model("before"), "after": Path(summary["model_dir"]), "gold": reference.model("gold")}
    return remembered(reference, person, models)


def _check(out: Path, summary: dict[str, Any], screen: Screen) -> tuple[bool, str]:
    """Check the signed document as an outsider would, with the command line alone."""
    command = [sys.executable, "-m", "deletion_service.cli", "cert", "verify", "certificate.dsse.json"]
    command += ["--keys", "issuer.json", "--log", "certificate.log.json", "--evidence", "evidence.json"]
    if summary["verdict"] == "PASS":
        command += ["--model", os.path.relpath(summary["model_dir"], out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    screen.say()
    screen.say(f"$ lethe {' '.join(command[3:])}")
    screen.say(result.stdout.rstrip() or result.stderr.rstrip())
    return result.returncode == 0, result.stdout


def _show(out: Path, summary: dict[str, Any], ours: Measured, gold: Measured | None, screen: Screen) -> None:
    screen.say()
    for line in table(ours, gold, summary["bob"]):
        screen.say(line)
    screen.say()
    for finding in summary["findings"]:
        screen.say(f"not met: {finding}")
    stages = ", ".join(f"{kind} {seconds:.0f} s" for kind, seconds in summary["stages"].items())
    screen.say(f"stages: {stages}; in all {summary['seconds']['total']:.0f} s")
    if gold is not None:
        screen.say(f"gold under the same policy: {gold.verdict.result}")
    screen.say(f"outcome: {summary['outcome']}   verdict: {summary['verdict']}")
    screen.say(
        f"pictures: {_near(out / 'report.html')}; pages: make up ({_near(out / 'accounts.txt')} tells how to sign in)"
    )


def _near(path: Path) -> str:
    return os.path.relpath(path)


if __name__ == "__main__":
    raise SystemExit(main())
