"""The comparison of methods as files: CSV of every cell, JSON, a table of means over seeds, and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks.method_columns import RELEARNING_EPOCHS, beside_gold
from benchmarks.panels import Panel
from ml.digests import canonical_json
from ml.errors import SpecError
from ml.files import write_atomically
from ml.pictures.svg import BLUE, GREEN, ORANGE, drawing, words

NAME: Final = "methods"
SPENT: Final = "spent_cpu_seconds"
"""Of making, measuring and judging a cell's model; `cpu_seconds` are the method's own."""
_TABLE: Final = (
    ("harmonic mean", "harmonic_mean"),
    ("closeness", "closeness"),
    ("kept", "kept"),
    ("robustness", "robustness"),
    ("forget ES", "forget_es"),
    ("Prob", "forget_prob"),
    ("truth", "forget_truth"),
    ("other forms: ES", "forget_other_es"),
    ("Prob", "forget_other_prob"),
    ("truth", "forget_other_truth"),
    ("KS D", "ks_d"),
    ("KS p", "ks_p"),
    ("PrivLeak", "privleak"),
    ("retain ES", "retain_es"),
    ("Prob", "retain_prob"),
    ("ROUGE-L", "retain_rouge"),
    ("utility", "utility"),
    ("AUROC retained-deleted", "auroc_retained_deleted"),
    ("never seen-deleted", "auroc_never_seen_deleted"),
    ("fluency gap", "fluency_gap"),
    ("prefix", "prefix_hit"),
    ("relearned", f"relearned_{RELEARNING_EPOCHS[-1]}_hit"),
    ("benign", "benign_hit"),
    ("int8", "int8_hit"),
    ("int4", "int4_hit"),
    ("CPU s", "cpu_seconds"),
    ("MiB", "peak_mib"),
)
_WORDS: Final = frozenset({"model", "code", "verdict", "reasons", "whole_verdict", "whole_reasons", "refused"})
"""Columns that are no numbers, even where they look like some: a digest may."""
_PANEL: Final = (520, 380)
_INSIDE: Final = (62, 44, 150, 60)  # left, top, right and bottom of a panel's frame
_LOCAL: Final = {"gold": GREEN, "second gold": GREEN, "before": ORANGE, "base": ORANGE}


class Place(Protocol):
    """What identifies a cell."""

    seed: int
    forgotten: int
    model: str

    @property
    def name(self) -> str: ...


def write_results(directory: Path, rows: Sequence[Mapping[str, Any]], *, size: str, key: str) -> None:
    """Write all four files below `directory`; `key` says of what comparison the rows are."""
    directory.mkdir(parents=True, exist_ok=True)
    means = mean_rows(rows)
    cpu_seconds = sum(row[SPENT] for row in rows)
    document = {"size": size, "key": key, "rows": [printable(row) for row in rows]}
    contents = {
        "json": canonical_json(document) + b"\n",
        "csv": rows_csv(rows).encode("utf-8"),
        "md": tables(means, size=size, cpu_seconds=cpu_seconds, code=sorted({row["code"] for row in rows})).encode(),
        "svg": picture(means).encode("utf-8"),
    }
    for ending, data in contents.items():
        write_atomically(directory / f"{NAME}-{size}.{ending}", data)


def read_rows(directory: Path, *, size: str, key: str) -> list[dict[str, Any]]:
    """Rows that an earlier run wrote below `directory`, rounded as they were written; none where there was none.

    Raises:
        SpecError: they are of another comparison, or no results at all.
    """
    path = directory / f"{NAME}-{size}.json"
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = [{k: v if k in _WORDS else _number(v) for k, v in row.items()} for row in document["rows"]]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise SpecError(f"{path.name} holds no results of a comparison; name another directory") from exc
    if document.get("key") != key:
        raise SpecError(f"{path.name} holds results of another comparison; remove it, or name another directory")
    return rows


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def rows_of(cells: Sequence[Place], found: Mapping[str, Any], spent: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """One row a cell: identity, cost, columns, distances from gold, verdict; `spent` are CPU seconds by cell."""
    by_place = {(cell.seed, cell.forgotten, cell.model): cell for cell in cells}
    for cell in cells:
        numbers = found[f"measure-{cell.name}"]
        row: dict[str, Any] = {"seed": cell.seed, "forgotten": cell.forgotten, "model": cell.model}
        row[SPENT] = spent[cell.name]
        row |= {k: v for k, v in found[f"make-{cell.name}"].items() if k != "manifest_sha256"}
        if numbers:
            gold, before = (
                found[f"measure-{by_place[cell.seed, cell.forgotten, name].name}"] for name in ("gold", "before")
            )
            row |= {name: value for name, value in numbers.items() if name != "truth_ratios"}
            row |= beside_gold(numbers, gold, before)
        for kind, prefix in (("judge", ""), ("gate", "whole_")):
            judged = found.get(f"{kind}-{cell.name}", {})
            row |= {f"{prefix}verdict": judged.get("verdict", "")}
            row |= {f"{prefix}reasons": "; ".join(judged.get("reasons", ()))}
        yield row


def mean_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds of each model and number of forgotten people; verdicts counted."""
    groups: defaultdict[tuple[int, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["forgotten"], row["model"]].append(row)
    means = []
    for (forgotten, model), members in groups.items():
        mean: dict[str, Any] = {"forgotten": forgotten, "model": model, "seeds": len(members)}
        for column in {name for row in members for name, value in row.items() if isinstance(value, float)}:
            values = [row[column] for row in members if column in row]
            if len(values) == len(members):
                mean[column] = sum(values) / len(values)
        mean["verdicts"], mean["whole_verdicts"] = _counted(members, "verdict"), _counted(members, "whole_verdict")
        mean["refused"] = next((row["refused"] for row in members if "refused" in row), "")
        means.append(mean)
    return means


def _counted(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    verdicts = [row[column] for row in rows if row.get(column)]
    return ", ".join(f"{verdicts.count(v)} {v}" for v in sorted(set(verdicts)))


def rows_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every cell with every column."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(printable(row) for row in rows)
    return out.getvalue()


def printable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its floats as text: canonical JSON has none."""
    return {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}


def tables(means: Sequence[Mapping[str, Any]], *, size: str, cpu_seconds: float, code: Sequence[str]) -> str:
    """One table for each number of forgotten people, references first, then methods from the best down."""
    lines = [
        f"# Deletion methods beside gold ({size})",
        "",
        f"CPU minutes: {cpu_seconds / 60:.1f}. Code: {', '.join(code)}.",
        "",
    ]
    lines += [
        "Means over seeds; the gate judges the first of the forgotten, by its fast tier and, where it was asked to, by "
        "all families (whole gate). closeness: 1 minus the largest "
        "distance from gold; kept: smallest retained share of before; robustness: 1 minus what relearning brings back "
        "beyond gold.",
    ]
    for forgotten in sorted({row["forgotten"] for row in means}):
        chosen = [row for row in means if row["forgotten"] == forgotten]
        lines += ["", f"## {forgotten} forgotten", ""]
        lines += [f"| model | {' | '.join(title for title, _ in _TABLE)} | gate | whole gate |"]
        lines += ["|---" * (len(_TABLE) + 3) + "|"]
        lines += [_line(row) for row in sorted(chosen, key=_order)]
        lines += [f"\n{row['model']} was refused: {row['refused']}" for row in chosen if row["refused"]]
    return "\n".join([*lines, ""])


def _order(row: Mapping[str, Any]) -> tuple[int, float]:
    if row["model"] in _LOCAL:
        return list(_LOCAL).index(row["model"]), 0.0
    return len(_LOCAL), -row.get("harmonic_mean", -1.0)


def _line(row: Mapping[str, Any]) -> str:
    cells = [f"{row[column]:.3g}" if column in row else "-" for _, column in _TABLE]
    return f"| {' | '.join([row['model'], *cells, row['verdicts'] or '-', row['whole_verdicts'] or '-'])} |"


# --- pictures -----------------------------------------------------------------------------------------------------


def picture(means: Sequence[Mapping[str, Any]]) -> str:
    """Utility against forgetting, and what relearning brings back: for the smallest number of forgotten people."""
    smallest = min(row["forgotten"] for row in means)
    shown = [row for row in means if row["forgotten"] == smallest and "utility" in row]
    width, height = _PANEL
    body = _scatter(shown) + f'<g transform="translate({width} 0)">{_curves(shown)}</g>'
    text = "Methods beside gold. " + "; ".join(
        f"{row['model']}: forget probability {row['forget_prob']:.2f}, utility {row['utility']:.2f}" for row in shown
    )
    return drawing(body, title="Deletion methods", text=text, element_id=NAME, width=2 * width, height=height)


def _scatter(rows: Sequence[Mapping[str, Any]]) -> str:
    panel = Panel(_PANEL, _INSIDE, (1.0, 1.05))
    parts = [panel.frame("Utility against forgetting", below="forget probability", beside="utility")]
    for row in rows:
        x, y = panel.place(row["forget_prob"], row["utility"])
        colour = _LOCAL.get(row["model"], BLUE)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>')
        parts.append(words(x + 8, y + 4, row["model"], size=11, anchor="start"))
    return "".join(parts)


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    panel = Panel(_PANEL, _INSIDE, (float(max(RELEARNING_EPOCHS)), 1.05))
    title = "What comes back after relearning the other half"
    parts = [panel.frame(title, below="epochs of relearning", beside="share of values")]
    for row in rows:
        points = [(0.0, row["forget_hit"]), *((float(e), row[f"relearned_{e}_hit"]) for e in RELEARNING_EPOCHS)]
        parts.append(panel.curve(points, _LOCAL.get(row["model"], BLUE), name=row["model"]))
    return "".join(parts)
