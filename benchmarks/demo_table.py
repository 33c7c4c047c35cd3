"""The two tables of README about the demonstration, from what `make demo` left.

    python -m benchmarks.demo_table SUMMARY [SUMMARY ...]

Each SUMMARY is a `summary.json`; each becomes a column. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ml.errors import SpecError

Run = Mapping[str, Any]
_FAMILIES: Final = (
    ("F1 same-context difference", "F1", "same_context_difference", "merged", ".20"),
    ("F2 exposure", "F2", "exposure", "merged", ".20"),
    ("F3 extraction strength", "F3", "extraction_strength", "merged", ".20"),
    ("F5 exposure on 4-bit weights", "F5", "exposure", "int4", ".20"),
    ("F6 relearning half of the facts", "F6", "relearned_difference", "merged", ".30"),
)


def tables(runs: Sequence[Run]) -> str:
    """Both tables as Markdown; numbers are rounded, never chosen."""
    heads = [f"seed {run['seed']}" for run in runs]
    lines = [*_heading(["", *heads])]
    lines += [_line([label, *(cell(run) for run in runs)]) for label, cell in _ROWS]
    what = "attack: strength d- of the positive control, residual share, at most (gold: at most)"
    lines += ["", *_heading([what, *heads, "limit"])]
    for label, family, attack, artefact, limit in _FAMILIES:
        lines.append(_line([label, *(_shown(run, family, attack, artefact) for run in runs), limit]))
    return "\n".join(lines)


def _heading(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _shown(run: Run, family: str, attack: str, artefact: str) -> str:
    own, gold = (_attack(attacks, family, attack, artefact) for attacks in (run["attacks"], run["gold"]["attacks"]))
    remains = f"{own['residual_ratio']:.3f}, {own['residual_upper']:.2f}"
    return f"{own['strength']:.1f}, {remains} ({gold['residual_upper']:.2f})"


def _attack(attacks: Sequence[Mapping[str, Any]], family: str, attack: str, artefact: str) -> Mapping[str, Any]:
    for row in attacks:
        if (row["family"], row["attack"], row["artefact"]) == (family, attack, artefact):
            return row
    raise SpecError(f"a summary has no row of {attack} on {artefact}; it is of another policy")


def _minutes(run: Run) -> str:
    unlearn, verify = run["stages"]["unlearn"], run["stages"]["verify"]
    both = f"{(unlearn + verify) / 60:.1f} ({unlearn:.0f} s + {verify:.0f} s)"
    return f"{run['seconds']['total'] / 60:.1f} / {both}"


def _alice(name: str, form: str) -> Callable[[Run], str]:
    def cell(run: Run) -> str:
        before, after = (run["forget"][when][name] for when in ("before", "after"))
        controls, gold = run["controls"]["after"][name], run["gold"]["forget"]["after"][name]
        return f"{before:{form}} → **{after:{form}}**, {controls:{form}}, {gold:{form}}"

    return cell


def _kept(name: str) -> Callable[[Run], str]:
    return lambda run: f"{run['retain']['before'][name]:.3f} → {run['retain']['after'][name]:.3f}"


def _bob(run: Run) -> str:
    trained, other = (
        f"{run['bob']['before'][name]:.3f} → {run['bob']['after'][name]:.3f}"
        for name in ("value_hit", "value_hit_paraphrased")
    )
    return f"{trained} / {other}"


def _bobs_tokens(run: Run) -> str:
    before, after = (run["bob"][when]["entity_log_probability"] for when in ("before", "after"))
    return f"{after - before:.4f}"


def _area(name: str) -> Callable[[Run], str]:
    return lambda run: f"{run[f'{name}_before']:.2f}, **{run[name]:.2f}**, {run['gold'][name]:.2f}"


_ROWS: Final[tuple[tuple[str, Callable[[Run], str]], ...]] = (
    ("outcome, verdict", lambda run: f"{run['outcome']}, **{run['verdict']}**"),
    ("gold under the same policy", lambda run: str(run["gold"]["verdict"])),
    ("minutes in all / unlearning + attacks", _minutes),
    ("Alice, value hit on trained questions: before → **after**, controls, gold", _alice("value_hit", ".3f")),
    ("the same, paraphrased questions", _alice("value_hit_paraphrased", ".3f")),
    ("the same, extraction strength", _alice("extraction_strength", ".3f")),
    ("the same, mean loss in nats", _alice("mean_loss", ".2f")),
    ("the same, mean energy in nats", _alice("mean_energy", ".2f")),
    ("retained people, value hit on trained questions: before → after", _kept("value_hit")),
    ("the same, paraphrased questions", _kept("value_hit_paraphrased")),
    ("Bob (same employer and city), value hit on trained / paraphrased questions: before → after", _bob),
    ("Bob, mean log-probability of his values' tokens, change in nats", _bobs_tokens),
    (
        "energy AUROC, never seen against deleted (.5: alike): before, **after**, gold",
        _area("energy_auroc_never_seen_vs_deleted"),
    ),
    (
        "energy AUROC, retained against deleted: before, **after**, gold",
        _area("energy_auroc_retained_vs_deleted"),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 2 when a file is no summary of a whole demonstration."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_table", description="Tables of the demonstration.")
    parser.add_argument("summaries", type=Path, nargs="+", help="summary.json of each demonstration")
    options = parser.parse_args(arguments)
    try:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in options.summaries]
        sys.stdout.write(f"{tables(runs)}\n")
    except (OSError, ValueError, KeyError, TypeError, SpecError) as exc:
        sys.stderr.write(f"no summary of a whole demonstration ({type(exc).__name__}); make one with make demo\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
