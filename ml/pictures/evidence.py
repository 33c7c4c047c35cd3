"""All pictures of a piece of evidence, each with a summary and a table: what the console and the demonstration show.

Must never hold a number that is not in the evidence: what cannot be drawn from it is said to be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from typing import Final

from ml.decision import holm_steps, is_finite
from ml.pictures import charts, score_charts
from ml.pictures.holm_chart import HOLM_HEAD, holm_rows, holm_summary, holm_svg
from ml.pictures.relearning_chart import CURVE_HEAD, curve_rows, curve_summary, curve_svg
from ml.pictures.score_charts import Bound
from ml.reports import AttackResult, EnergyPicture, FactRoc, Histogram, VerificationReport
from ml.specs import FamilyRule, VerdictPolicy

MOMENTS: Final = {"before": "Before deletion", "after": "After deletion"}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: a title, the drawing, what it says in words, and the same as a table."""

    title: str
    svg: str
    summary: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """Pictures that belong together; `further` ones are folded away, `notes` say how to read them."""

    id: str
    title: str
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]
    further: tuple[Picture, ...] = ()
    wide: bool = False

    @property
    def html(self) -> str:
        """The section without its heading. Built from numbers and fixed words; every word in it is escaped."""
        shown = "".join(map(_figure, self.pictures))
        folded = "".join(map(_figure, self.further))
        if folded:
            folded = (
                "<details><summary>Attacks that look for a leak and bound nothing</summary>"
                f'<div class="pictures">{folded}</div></details>'
            )
        grid = "" if self.wide else ' class="pictures"'
        notes = "".join(f'<p class="small soft">{escape(note)}</p>' for note in self.notes)
        return (f"<div{grid}>{shown}</div>" if shown else "") + notes + folded


def bounds_section(
    report: VerificationReport, policy: VerdictPolicy, gold: VerificationReport | None = None
) -> Section:
    """What people look at first: how much may remain at most, attack by attack, against the limit.

    Args:
        gold: the same measured on a model that never learned from the person, where there is one.
    """
    bounds = tuple(_bounds(report, policy, gold))
    title = "What remains of the person’s influence, and at most how much"
    picture = Picture(
        title,
        score_charts.bounds_svg(bounds, title=title, element_id="bounds"),
        score_charts.bounds_summary(bounds),
        score_charts.BOUND_HEAD,
        tuple(score_charts.bound_rows(bounds)),
    )
    note = (
        "Each row is one attack that carries the claim. The shaded part is what the policy accepts. The verdict rests "
        "on the exact tests of the gate table; a bound beyond its limit shows neither a leak nor its absence."
    )
    return Section("bounds", "How much may remain", (picture,), (note,), wide=True)


def sections(report: VerificationReport, policy: VerdictPolicy) -> tuple[Section, ...]:
    """The other pictures: what is detected after correction, scores of every attack, relearning, energies, and how
    well energy tells people apart."""
    return (
        _multiplicity(report, policy),
        _scores(report, policy),
        _relearning(report, policy),
        _energies(report),
        _roc(report),
    )


def _figure(picture: Picture) -> str:
    title = escape(picture.title)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in picture.head)
    return (
        f"<figure><figcaption>{title}</figcaption>{picture.svg}"
        f'<p class="small">{escape(picture.summary)}</p>'
        f'<details><summary>The same as a table<span class="out-of-sight">: {title}</span></summary>'
        f'<div class="scroll" role="region" aria-label="Table: {title}" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(map(_table_row, picture.rows))}</tbody></table>"
        "</div></details></figure>"
    )


def _table_row(cells: tuple[str, ...]) -> str:
    first, *rest = map(escape, cells)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'


# --- bounds -------------------------------------------------------------------------------------------------------


def _bounds(report: VerificationReport, policy: VerdictPolicy, gold: VerificationReport | None) -> Iterator[Bound]:
    """Every attack that the policy lets carry the claim, whether or not the report shows it."""
    best = {} if gold is None else {_key(row): row for row in gold.attacks}
    for rule in policy.families:
        for attack, artefact in product(rule.primary, rule.artefacts):
            key = (rule.id, attack, artefact)
            found = [row for row in report.attacks if _key(row) == key]
            row = found[0] if len(found) == 1 else AttackResult(*key, "missing", "not in the evidence")
            missing = "" if row.status == "measured" else f"{row.status}: {row.reason}".replace("_", " ")
            yield Bound(row, rule.rho, missing, best.get(key))


def _key(row: AttackResult) -> tuple[str, str, str]:
    return row.family, row.attack, row.artefact


# --- multiplicity -------------------------------------------------------------------------------------------------


_MULTIPLICITY: Final = "Detection over all families"


def _multiplicity(report: VerificationReport, policy: VerdictPolicy) -> Section:
    if not is_finite(report.joint):
        return Section("multiplicity", _MULTIPLICITY, (), ("A joint p-value is no number; nothing follows from it.",))
    steps = holm_steps(report, policy)
    title = "Standing out, corrected for the number of looks"
    picture = Picture(
        title,
        holm_svg(steps, alpha=policy.alpha, title=title, element_id="holm"),
        holm_summary(steps, alpha=policy.alpha),
        HOLM_HEAD,
        tuple(holm_rows(steps, alpha=policy.alpha)),
    )
    note = (
        "Each family is one joint test over its attacks, in both directions. Detection alone fails nobody: a family "
        "that stands out fails where its bound does not hold either."
    )
    return Section("multiplicity", _MULTIPLICITY, (picture,), (note,), wide=True)


# --- scores -------------------------------------------------------------------------------------------------------

_SCORE_HEAD: Final = ("When", "Who", "Score", "People")


def _scores(report: VerificationReport, policy: VerdictPolicy) -> Section:
    rules = [rule for rule in policy.families if not _teaches(rule)]
    claims = {(rule.id, attack) for rule in rules for attack in rule.primary}
    rows = [row for rule in rules for row in report.attacks if row.family == rule.id]
    notes = (
        "Dotted bars are people whom the model never saw, at least 5 to a bar; the upright line below is their mean, "
        "the diamond is the person. Forgotten means: the diamond stands among them. ± is one standard deviation; p is "
        "the chance that somebody the model never saw stands out as much.",
    )
    return Section(
        "scores",
        "The person among people never seen",
        tuple(_score_pictures(row for row in rows if (row.family, row.attack) in claims)),
        notes,
        tuple(_score_pictures(row for row in rows if (row.family, row.attack) not in claims)),
    )


def _relearning(report: VerificationReport, policy: VerdictPolicy) -> Section:
    taught = {rule.id for rule in policy.families if _teaches(rule)}
    budget = policy.relearning
    pictures = tuple(_score_pictures(row for row in report.attacks if row.family in taught))
    notes = [
        f"An attacker teaches the model {budget.share:.0%} of the facts again, for {budget.epochs} epochs, and asks "
        "for the others. The verdict rests on the last epoch, and reads more value swaps than the curve does."
    ]
    if curves := report.relearning:
        svg = curve_svg(curves, title=_CURVE_TITLE, element_id="relearning-curve")
        drawn = Picture(_CURVE_TITLE, svg, curve_summary(curves), CURVE_HEAD, tuple(curve_rows(curves)))
        pictures = (drawn, *pictures)
    for moment in (moment for moment in MOMENTS if moment not in {curve.moment for curve in curves}):
        notes.append(f"This evidence holds no curve over the epochs {moment} deletion.")
    said = tuple(notes) if pictures else ("No relearning was measured.",)
    return Section("relearning", "Relearning", pictures, said)


_CURVE_TITLE: Final = "What teaching the other facts brings back"


def _teaches(rule: FamilyRule) -> bool:
    return any(attack.startswith("relearned") for attack in rule.primary)


def _score_pictures(rows: Iterable[AttackResult]) -> Iterator[Picture]:
    for row in rows:
        axis = score_charts.score_axis(row)
        if axis is not None:
            element_id = f"score-{row.family}-{row.attack}-{row.artefact}".replace("_", "-")
            svg = score_charts.score_svg(row, axis=axis, element_id=element_id)
            table = tuple(score_charts.score_rows(row))
            yield Picture(score_charts.attack_title(row), svg, score_charts.score_summary(row), _SCORE_HEAD, table)


# --- energies -----------------------------------------------------------------------------------------------------


def _energies(report: VerificationReport) -> Section:
    axis = charts.shared_axis(report.energies)
    if axis is None:
        return Section("energies", "Energies", (), ("This run recorded no energies.",))
    pictures = []
    for moment, title in MOMENTS.items():
        groups = _of(report.energies, moment)
        svg = charts.energy_svg(groups, axis=axis, title=title, element_id=f"energy-{moment}")
        rows = tuple((group, span, str(count)) for group, span, count in charts.energy_rows(groups))
        pictures.append(Picture(title, svg, charts.energy_summary(groups), ("Group", "Energy in nats", "Texts"), rows))
    notes = (
        *charts.separation_summary(report.separation),
        "Each row is scaled to its own highest bar; areas stand for numbers of texts, at least 5 to a bar. The upright "
        "line is the mean.",
    )
    return Section("energies", "Energies", tuple(pictures), notes)


def _of(energies: Sequence[EnergyPicture], moment: str) -> list[EnergyPicture]:
    order = list(charts.LABELS)
    chosen = [picture for picture in energies if picture.moment == moment]
    return sorted(chosen, key=lambda p: order.index(p.group) if p.group in order else len(order))


# --- ROC ----------------------------------------------------------------------------------------------------------

_ROC_TITLE: Final = "Telling the person’s texts by their energy"
_COARSE: Final = "Every mark is exact; the lines between them only join them, since the evidence holds no single facts."


def _roc(report: VerificationReport) -> Section:
    energy, notes = _energy_roc(report)
    attacks = tuple(_attack_rocs(report.rocs))
    if not report.rocs:
        notes.append("This evidence holds no curves of the attacks.")
    return Section("roc", "ROC", (*energy, *attacks), (*((_COARSE,) if energy or attacks else ()), *notes))


def _attack_rocs(rocs: Sequence[FactRoc]) -> Iterator[Picture]:
    """One picture an attack: how well it tells the person's facts from those of people never seen."""
    for family, attack in dict.fromkeys((roc.family, roc.attack) for roc in rocs):
        found = {roc.moment: roc for roc in rocs if (roc.family, roc.attack) == (family, attack)}
        curves: dict[str, charts.Curve] = {}
        for moment, roc in found.items():
            curves[moment] = tuple(zip(roc.twins, roc.subject, strict=True))
        title = f"{family} {attack.replace('_', ' ')}: telling the person’s facts"
        areas = ", ".join(f"{moment} {roc.area:.2f}" for moment, roc in found.items())
        text = f"Area under the curve, over all facts: {areas}; 0.50 means that they cannot be told apart."
        svg = charts.roc_svg(
            curves,
            title=title,
            text=text,
            element_id=f"roc-{family}-{attack}".replace("_", "-"),
            across="share of the facts of people never seen above a score",
            up="share of the person’s facts",
        )
        rows = tuple((m, f"{x:.3f}", f"{y:.3f}") for m, curve in curves.items() for x, y in curve)
        yield Picture(title, svg, text, ("When", "Share of never-seen facts", "Share of the person’s facts"), rows)


def _energy_roc(report: VerificationReport) -> tuple[tuple[Picture, ...], list[str]]:
    """The curve of energies, where bars allow one, and what is lacking."""
    shapes: dict[tuple[str, str], Histogram | None] = {(p.moment, p.group): p.shape for p in report.energies}
    found = {m: charts.roc_curve(shapes.get((m, "deleted")), shapes.get((m, "never_seen"))) for m in MOMENTS}
    curves = {moment: curve for moment, curve in found.items() if curve is not None}
    if not curves:
        return (), ["No curve of energies: they are binned too coarsely to give a point of one, or there are none."]
    lacking = [f"No curve of energies {m}: they are binned too coarsely." for m in MOMENTS if not found[m]]
    text = _roc_summary(curves, report)
    svg = charts.roc_svg(
        curves,
        title=_ROC_TITLE,
        text=text,
        element_id="roc",
        across="share of texts about people never seen that look known",
        up="share about the person",
    )
    rows = tuple((m, f"{x:.3f}", f"{y:.3f}") for m, curve in curves.items() for x, y in curve)
    head = ("When", "Share of never-seen texts that look known", "Share of the person’s texts")
    return (Picture(_ROC_TITLE, svg, text, head, rows),), lacking


def _roc_summary(curves: Iterable[str], report: VerificationReport) -> str:
    said = []
    for moment in curves:
        suffix = "" if moment == "after" else "_before"
        higher = report.separation.get(f"energy_auroc_never_seen_vs_deleted{suffix}")
        said += [] if higher is None else [f"{moment} {1 - higher:.2f}"]
    areas = f" Area under the curve: {', '.join(said)}." if said else ""
    return f"On the dotted line a text about the person looks as known as one about people never seen.{areas}"
