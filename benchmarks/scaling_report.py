"""The costs of verification as files: JSON for code, tables and a picture for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.panels import DASHES, Panel, Points
from ml.digests import canonical_json
from ml.documents import plain_object
from ml.files import write_atomically
from ml.pictures.svg import BLUE, GREEN, ORANGE, drawing

NAME: Final = "scaling"
_PANEL: Final = (470, 300)
_INSIDE: Final = (58, 40, 18, 54)  # left, top, right and bottom of a panel's frame
_COLOURS: Final = (BLUE, ORANGE, GREEN)


@dataclass(frozen=True, slots=True)
class SubjectCost:
    """CPU seconds of verifying some subjects together: in all, and of each kind of measurement; how they ended."""

    subjects: int
    seconds: float
    parts: Mapping[str, float]
    verdicts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Block:
    """CPU seconds of the likelihood block over some twins.

    `text_tokens` are the tokens of their texts, `swap_tokens` those of all sentences with all values that compete in
    them, `given_tokens` those of the latter that a model must be given where sentences share a prompt. `seconds` has
    "texts" (the fused pass), "swaps", "bare" (the model's own forward pass over the texts), and the two parts of the
    fused pass that no scoring could do without: "body", the network below the output layer, and "output_layer", the
    logits that are scored.
    """

    text_tokens: int
    swap_tokens: int
    given_tokens: int
    seconds: Mapping[str, float]

    @property
    def texts_over_bare(self) -> float:
        """Scoring the texts, as a multiple of the bare pass over them."""
        return self.seconds["texts"] / self.seconds["bare"]

    @property
    def swaps_over_bare(self) -> float:
        """Scoring the swaps, as a multiple of what a bare pass takes for as many tokens: those of the sentences."""
        return self.seconds["swaps"] / (self.seconds["bare"] * self.swap_tokens / self.text_tokens)

    @property
    def swaps_over_given(self) -> float:
        """The same, where only the tokens count that the model was given: what short pieces on a cache cost more."""
        return self.seconds["swaps"] / (self.seconds["bare"] * self.given_tokens / self.text_tokens)

    @property
    def statistics(self) -> float:
        """CPU seconds of what scoring texts adds to the network's work: statistics of each token, and batching."""
        return self.seconds["texts"] - self.seconds["body"] - self.seconds["output_layer"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """All costs; `twins`, `facts` and `vocabulary` are likelihood blocks by their number."""

    subjects: tuple[SubjectCost, ...]
    twins: Mapping[int, Block]
    facts: Mapping[int, Block]
    vocabulary: Mapping[int, Block]
    about: Mapping[str, str]

    @property
    def over_one(self) -> dict[int, float]:
        """What some subjects cost, as a multiple of one."""
        one = next((cost.seconds for cost in self.subjects if cost.subjects == 1), None)
        return {} if one is None else {cost.subjects: cost.seconds / one for cost in self.subjects}

    @property
    def texts_over_bare(self) -> float:
        """Scoring the texts of the most twins, as a multiple of the bare pass."""
        return self.twins[max(self.twins)].texts_over_bare


def write_results(directory: Path, found: Scaling) -> None:
    """Write all three files below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "json": canonical_json(plain_object(found)) + b"\n",
        "md": tables(found).encode("utf-8"),
        "svg": picture(found).encode("utf-8"),
    }
    for ending, data in contents.items():
        write_atomically(directory / f"{NAME}.{ending}", data)


# --- tables -------------------------------------------------------------------------------------------------------


def tables(found: Scaling) -> str:
    """Everything the picture shows, and what the seconds were spent on."""
    kinds = sorted({kind for cost in found.subjects for kind in cost.parts})
    lines = ["# What verification costs", "", "CPU seconds of one thread.", ""]
    lines += [f"- {name}: {value}" for name, value in found.about.items()]
    lines += ["", "## Subjects", "", "Whole verifications from nothing; several subjects share a sealed twin pool.", ""]
    lines += _table(
        ("subjects", "seconds", "times one", *kinds, "the rest", "verdicts"),
        (_subject_cells(cost, kinds, found.over_one) for cost in found.subjects),
    )
    for title, column, blocks in (
        ("Twins", "twins", found.twins),
        ("Tokens", "facts per person", found.facts),
        ("Vocabulary", "rows of the output layer", found.vocabulary),
    ):
        lines += ["", f"## {title}", "", "The likelihood block beside a bare forward pass over as many tokens.", ""]
        lines += _table((column, *_BLOCK_HEAD), ((str(size), *_block_cells(block)) for size, block in blocks.items()))
    return "\n".join([*lines, ""])


_BLOCK_HEAD: Final = (
    "tokens of texts",
    "texts, s",
    "of it network",
    "output layer",
    "statistics and batching",
    "bare pass, s",
    "texts over bare",
    "swaps, s",
    "tokens of swaps",
    "swaps over bare",
    "tokens given",
    "swaps over bare by these",
)


def _subject_cells(cost: SubjectCost, kinds: Sequence[str], over_one: Mapping[int, float]) -> tuple[str, ...]:
    rest = cost.seconds - sum(cost.parts.values())
    ended = ", ".join(f"{count} {verdict}" for verdict, count in cost.verdicts.items())
    times = f"{over_one[cost.subjects]:.2f}" if cost.subjects in over_one else "-"
    spent = (f"{cost.parts.get(kind, 0.0):.1f}" for kind in kinds)
    return str(cost.subjects), f"{cost.seconds:.1f}", times, *spent, f"{rest:.1f}", ended


def _block_cells(block: Block) -> tuple[str, ...]:
    seconds = block.seconds
    return (
        str(block.text_tokens),
        *(f"{seconds[name]:.2f}" for name in ("texts", "body", "output_layer")),
        f"{block.statistics:.2f}",
        f"{seconds['bare']:.2f}",
        f"{block.texts_over_bare:.2f}",
        f"{seconds['swaps']:.2f}",
        str(block.swap_tokens),
        f"{block.swaps_over_bare:.2f}",
        str(block.given_tokens),
        f"{block.swaps_over_given:.2f}",
    )


def _table(head: Sequence[str], rows: Iterator[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


# --- picture ------------------------------------------------------------------------------------------------------


def picture(found: Scaling) -> str:
    """Four panels: seconds against subjects, twins, tokens and vocabulary."""
    alone = found.subjects[0].seconds / found.subjects[0].subjects
    subjects = [(float(cost.subjects), cost.seconds) for cost in found.subjects]
    one_by_one = [(count, count * alone) for count, _ in subjects]
    panels = (
        ("Subjects of one twin pool", "subjects", {"one pool": subjects, "one by one": one_by_one}),
        ("Twins", "twins", _curves(found.twins, lambda size, block: size)),
        ("Tokens", "tokens of the twins’ texts", _curves(found.facts, lambda size, block: block.text_tokens)),
        ("Vocabulary", "rows of the output layer", _curves(found.vocabulary, lambda size, block: size)),
    )
    width, height = _PANEL
    body = "".join(
        f'<g transform="translate({index % 2 * width} {index // 2 * height})">{_panel(title, label, curves)}</g>'
        for index, (title, label, curves) in enumerate(panels)
    )
    text = (
        "CPU seconds of one thread. "
        f"{max(found.over_one, default=0)} subjects cost {found.over_one.get(max(found.over_one, default=0), 0):.2f} "
        f"times one; scoring the texts of {max(found.twins)} twins costs {found.texts_over_bare:.2f} times a bare pass."
    )
    return drawing(
        body, title="What verification costs", text=text, element_id=NAME, width=2 * width, height=2 * height
    )


def _curves(blocks: Mapping[int, Block], place: Callable[[int, Block], float]) -> dict[str, Points]:
    """Scoring texts and swaps, and bare passes over as many tokens."""
    return {
        name: [(float(place(size, block)), seconds(block)) for size, block in blocks.items()]
        for name, seconds in (
            ("texts", lambda block: block.seconds["texts"]),
            ("bare pass over them", lambda block: block.seconds["bare"]),
            ("value swaps", lambda block: block.seconds["swaps"]),
        )
    }


def _panel(title: str, label: str, curves: Mapping[str, Points]) -> str:
    xs, ys = ([point[i] for points in curves.values() for point in points] for i in (0, 1))
    panel = Panel(_PANEL, _INSIDE, (max(xs) * 1.04, max(ys) * 1.04))
    parts = [panel.frame(title, below=label, beside="CPU seconds")]
    for number, (name, points) in enumerate(curves.items()):
        colour, dashes = _COLOURS[number], DASHES[number]
        parts += [panel.curve(points, colour, dashes=dashes, dots=True), panel.key(number, name, colour, dashes=dashes)]
    return "".join(parts)
