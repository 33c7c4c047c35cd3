"""Deletions in a row, in batches and beside training again as files: JSON for code, tables and a picture for people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.panels import Panel
from ml.digests import canonical_json
from ml.files import write_atomically
from ml.pictures.svg import BLUE, GREEN, ORANGE, drawing, line, words

NAME: Final = "sequences"
MOST_OF_RETRAINING: Final = 0.25
_PANEL: Final = (520, 340)
_INSIDE: Final = (62, 44, 120, 60)  # left, top, right and bottom of the frame
_CURVES: Final = (("utility", BLUE), ("retain_hit", GREEN), ("worst earlier hit", ORANGE))


def batch_name(people: int, base_people: int) -> str:
    """Under this name stands what is known of so many people deleted at once, beside so many base people."""
    return f"{people}-of-{base_people}"


def write_results(directory: Path, found: Mapping[str, Any], *, size: str) -> None:
    """Write all three files below `directory`, of the parts that were found."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "json": canonical_json(_printable({"size": size, **found})) + b"\n",
        "md": tables(found, size=size).encode("utf-8"),
        "svg": picture(found).encode("utf-8"),
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


def versions(found: Mapping[str, Any]) -> int:
    """How many deletions in a row there are."""
    return sum(name.startswith("delete-") for name in found)


def batches(found: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Every batch that was deleted at once: people in it, and base people beside them; small ones first."""
    named = [re.fullmatch(r"batch-(\d+)-of-(\d+)", name) for name in found]
    return sorted(((int(match[1]), int(match[2])) for match in named if match), key=lambda batch: (batch[1], batch[0]))


def retraining(found: Mapping[str, Any], name: str) -> float | None:
    """CPU seconds of training again without the people of a batch, where that was measured."""
    again = found.get(f"retrain-{name}")
    return None if again is None else float(again["base_cpu_seconds"] + again["fine_tune_cpu_seconds"])


def shares(found: Mapping[str, Any]) -> list[tuple[int, int, float]]:
    """People in a batch, base people, and the batch's cost as a share of training again; where both were measured."""
    return [
        (people, base_people, found[f"batch-{batch_name(people, base_people)}"]["cpu_seconds"] / again)
        for people, base_people in batches(found)
        if (again := retraining(found, batch_name(people, base_people))) is not None
    ]


def tables(found: Mapping[str, Any], *, size: str) -> str:
    """What each version kept and forgot, what each batch cost, and how that compares with training again."""
    lines = [f"# Deletions in a row, in batches, and beside training again ({size})", ""]
    if versions(found):
        lines += [*_row_lines(found), ""]
    if batches(found):
        lines += [*_batch_lines(found), ""]
    return "\n".join(lines)


def _row_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "| version | utility | kept, value hit | other forms | base people | highest value hit of anybody deleted | "
        "other forms | highest ES | CPU s | verdict on the own version | on the last |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number in range(versions(found) + 1):
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
    return lines


def _batch_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "Training again is both steps without the batch, each until 99 % of values come back or its epochs are over; "
        "how many came back stands in brackets. Utility and kept values: before → after.",
        "",
        "| people in one batch | base people beside | CPU s | training again, CPU s (known) | share | utility | kept, "
        "value hit | highest value hit of anybody deleted | other forms | highest ES | verdict on the first |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for people, base_people in batches(found):
        name = batch_name(people, base_people)
        run, state = found[f"batch-{name}"], found[f"batch_kept-{name}"]
        again = retraining(found, name)
        known = found.get(f"retrain-{name}", {})
        cells = [
            str(people),
            str(base_people),
            f"{run['cpu_seconds']:.0f}",
            "-" if again is None else f"{again:.0f} ({known['base_hit']:.3f}, {known['fine_tune_hit']:.3f})",
            "-" if again is None else f"{run['cpu_seconds'] / again:.2f}",
            *(f"{state[f'{column}_before']:.3f} → {state[column]:.3f}" for column in ("utility", "retain_hit")),
            *(f"{worst(state, column):.3f}" for column in ("hit", "other_hit", "extraction_strength")),
            _verdict(found[f"batch_judged-{name}"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _verdict(judged: Mapping[str, Any]) -> str:
    return str(judged["verdict"]) + (f" ({'; '.join(judged['reasons'])})" if judged["reasons"] else "")


def picture(found: Mapping[str, Any]) -> str:
    """What a row of deletions keeps, and what a batch costs beside training again on more and more data."""
    width, height = _PANEL
    panels = [draw(found) for draw in (_row_panel, _growth_panel)]
    drawn = [panel for panel in panels if panel is not None]
    parts = [f'<g transform="translate({width * number} 0)">{svg}</g>' for number, (svg, _) in enumerate(drawn)]
    return drawing(
        "".join(parts),
        title="Deletions in a row, and beside training again",
        text=" ".join(text for _, text in drawn),
        element_id=NAME,
        width=width * max(1, len(drawn)),
        height=height,
    )


def _row_panel(found: Mapping[str, Any]) -> tuple[str, str] | None:
    """Utility, kept values and the most that anybody deleted is still known, version by version."""
    count = versions(found)
    if not count:
        return None
    panel = Panel(_PANEL, _INSIDE, (float(count), 1.05))
    parts = [panel.frame("Deletions one after another", below="deletions so far", beside="share")]
    states = [found[f"kept-{number}"] for number in range(count + 1)]
    for name, colour in _CURVES:
        known = name.startswith("worst")
        values = [worst(state, "hit") if known else float(state[name]) for state in states]
        # Before the first deletion nobody can be found again.
        points = [(float(number), value) for number, value in enumerate(values)][int(known) :]
        parts.append(panel.curve(points, colour, name=name.replace("_", " ")))
    text = (
        f"After {count} deletions in a row utility went from {states[0]['utility']:.3f} to "
        f"{states[-1]['utility']:.3f}; the highest value hit of anybody deleted is {worst(states[-1], 'hit'):.3f}."
    )
    return "".join(parts), text


def _growth_panel(found: Mapping[str, Any]) -> tuple[str, str] | None:
    """The cost of one batch as a share of training again, by how many people the model learned besides: of the number
    of people that was deleted from the most models."""
    measured = shares(found)
    if not measured:
        return None
    counts = Counter(count for count, _, _ in measured)
    people = max(counts, key=lambda count: (counts[count], count))
    points = [(float(base), share) for count, base, share in measured if count == people]
    reach = max(base for base, _ in points), 1.1 * max(MOST_OF_RETRAINING, *(share for _, share in points))
    panel = Panel(_PANEL, _INSIDE, reach)
    _, limit = panel.place(0.0, MOST_OF_RETRAINING)
    parts = [
        panel.frame(f"{people} people at once", below="base people", beside="CPU time, share of training again"),
        line(_INSIDE[0], limit, _PANEL[0] - _INSIDE[2], limit),
        words(_PANEL[0] - _INSIDE[2] + 6, limit + 4, f"{MOST_OF_RETRAINING:.0%}", size=11, anchor="start"),
        panel.curve(points, BLUE, dots=True),
    ]
    told = ", ".join(f"{share:.2f} beside {base:g} base people" for base, share in points)
    return "".join(parts), f"Deleting {people} people at once costs, as a share of training again, {told}."
