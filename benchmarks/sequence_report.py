"""Deletions in a row as files: JSON for code, tables and a picture for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.panels import Panel
from ml.digests import canonical_json
from ml.files import write_atomically
from ml.pictures.svg import BLUE, GREEN, ORANGE, drawing

NAME: Final = "sequences"
_PANEL: Final = (520, 340)
_INSIDE: Final = (62, 44, 120, 60)  # left, top, right and bottom of the frame
_CURVES: Final = (("utility", BLUE), ("retain_hit", GREEN), ("worst earlier hit", ORANGE))


def write_results(
    directory: Path, found: Mapping[str, Any], *, in_a_row: int, batches: Sequence[int], size: str
) -> None:
    """Write all three files below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "json": canonical_json(_printable({"size": size, **found})) + b"\n",
        "md": tables(found, in_a_row=in_a_row, batches=batches, size=size).encode("utf-8"),
        "svg": picture(found, in_a_row=in_a_row).encode("utf-8"),
    }
    for ending, data in contents.items():
        write_atomically(directory / f"{NAME}-{size}.{ending}", data)


def _printable(value: Any) -> Any:
    """Floats as text: canonical JSON has none."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return {str(name): _printable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(inner) for inner in value]
    return value


def worst(state: Mapping[str, Any], column: str) -> float:
    """The largest value of a column over everybody deleted so far; 0 while there is nobody."""
    return max((float(person[column]) for person in state["forgotten"]), default=0.0)


def tables(found: Mapping[str, Any], *, in_a_row: int, batches: Sequence[int], size: str) -> str:
    """What each version kept and forgot, what each batch cost, and how that compares with training again."""
    again = found["retrain"]
    retrain = again["base_cpu_seconds"] + again["fine_tune_cpu_seconds"]
    lines = [
        f"# Deletions in a row ({size})",
        "",
        f"Training again, both steps until 99 % of values come back: {retrain:.0f} CPU s (base "
        f"{again['base_cpu_seconds']:.0f} s, {again['base_hit']:.3f} known; fine-tune "
        f"{again['fine_tune_cpu_seconds']:.0f} s, {again['fine_tune_hit']:.3f}).",
        "",
        "| version | utility | kept, value hit | other forms | base people | highest value hit of anybody deleted | "
        "other forms | highest ES | CPU s | verdict on the own version | on the last |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number in range(in_a_row + 1):
        state, run = found[f"kept-{number}"], found.get(f"delete-{number}", {})
        cells = [
            "first release" if not number else str(number),
            *(f"{state[column]:.3f}" for column in ("utility", "retain_hit", "retain_other_hit", "general_hit")),
            *(f"{worst(state, column):.3f}" if number else "-" for column in ("hit", "other_hit")),
            f"{worst(state, 'extraction_strength'):.3f}" if number else "-",
            f"{run['cpu_seconds']:.0f}" if run else "-",
            *(_verdict(found[f"{which}-{number}"]) if number else "-" for which in ("own", "last")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| people in one batch | CPU s | share of training again | utility | kept, value hit | highest value hit | "
        "highest ES |",
        "|---|---|---|---|---|---|---|",
    ]
    for people in batches:
        run, state = found[f"batch-{people}"], found[f"kept-batch-{people}"]
        lines.append(
            f"| {people} | {run['cpu_seconds']:.0f} | {run['cpu_seconds'] / retrain:.2f} | {state['utility']:.3f} | "
            f"{state['retain_hit']:.3f} | {worst(state, 'hit'):.3f} | {worst(state, 'extraction_strength'):.3f} |"
        )
    return "\n".join([*lines, ""])


def _verdict(judged: Mapping[str, Any]) -> str:
    return str(judged["verdict"]) + (f" ({'; '.join(judged['reasons'])})" if judged["reasons"] else "")


def picture(found: Mapping[str, Any], *, in_a_row: int) -> str:
    """Utility, kept values and the most that anybody deleted is still known, version by version."""
    width, height = _PANEL
    panel = Panel(_PANEL, _INSIDE, (float(in_a_row), 1.05))
    parts = [panel.frame("Deletions one after another", below="deletions so far", beside="share")]
    states = [found[f"kept-{number}"] for number in range(in_a_row + 1)]
    for name, colour in _CURVES:
        values = [worst(state, "hit") if name.startswith("worst") else float(state[name]) for state in states]
        points = [(float(number), value) for number, value in enumerate(values)]
        parts.append(panel.curve(points, colour, name=name.replace("_", " ")))
    last = found[f"kept-{in_a_row}"]
    text = (
        f"After {in_a_row} deletions in a row utility went from {found['kept-0']['utility']:.3f} to "
        f"{last['utility']:.3f}; the highest value hit of anybody deleted is {worst(last, 'hit'):.3f}."
    )
    return drawing("".join(parts), title="Deletions in a row", text=text, element_id=NAME, width=width, height=height)
