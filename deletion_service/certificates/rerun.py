"""What came of measuring evidence again: the comparison, as a document and as lines of text. Pure; no Django.

Must never call evidence reproduced because something was left out: what only one report holds differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ml.decision import Verdict, judge
from ml.documents import plain
from ml.manifest import RunManifest
from ml.reports import VerificationReport
from ml.reproduction import (
    Difference,
    GroupComparison,
    compare_reports,
    environment_differences,
    gate_differences,
)

LARGEST_TOLERANCE: Final = 1e-4
"""Numbers that differ by more are never the same, whatever the policy that came with them says (verification 15)."""
_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Rerun:
    """What was claimed, what came out this time, and how they compare; `groups` is empty under another seed.

    `red_team` is true where findings of a red team belong to the claim: they are not measured again, and a verdict
    that they lowered was lower than the `recorded` one, which is that of the verification alone.
    """

    policy: str
    policy_sha256: str
    seed: int
    recorded_seed: int
    tolerance: float
    recorded: Verdict
    repeated: Verdict
    gates: tuple[Difference, ...]
    environment: tuple[Difference, ...]
    groups: tuple[GroupComparison, ...]
    red_team: bool = False

    @property
    def same_seed(self) -> bool:
        """True when every number must come out again; another seed draws other twins."""
        return self.seed == self.recorded_seed

    @property
    def holds(self) -> bool:
        """True when the evidence was reproduced: every number under its own seed, the verdict under another."""
        if not self.same_seed:
            return self.recorded.result == self.repeated.result
        return not self.gates and not any(group.differing for group in self.groups)

    def to_document(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return {
            "reproduced": self.holds,
            "policy": self.policy,
            "policy_sha256": self.policy_sha256,
            "seed": str(self.seed),
            "recorded_seed": str(self.recorded_seed),
            "tolerance": str(self.tolerance),
            "recorded_verdict": self.recorded.result.value,
            "repeated_verdict": self.repeated.result.value,
            "gates": plain(self.gates),
            "environment": plain(self.environment),
            "groups": plain(self.groups),
            "red_team": "not_repeated" if self.red_team else "none",
        }


def compared(
    manifest: RunManifest,
    recorded: VerificationReport,
    repeated: VerificationReport,
    *,
    seed: int,
    red_team: bool = False,
) -> Rerun:
    """Compare what was recorded with what came out under `seed`; `red_team` says that one belongs to the claim.

    The policy says how exactly numbers must agree, up to `LARGEST_TOLERANCE`: it may come from whoever made the claim.
    """
    policy, same_seed = manifest.policy, seed == manifest.seed
    claim, found = judge(recorded, policy), judge(repeated, policy)
    tolerance = min(policy.determinism_tolerance, LARGEST_TOLERANCE)
    return Rerun(
        policy=policy.name,
        policy_sha256=policy.sha256,
        seed=seed,
        recorded_seed=manifest.seed,
        tolerance=tolerance,
        recorded=claim,
        repeated=found,
        gates=gate_differences(claim, found),
        environment=environment_differences(recorded.environment, repeated.environment),
        groups=compare_reports(recorded, repeated, tolerance=tolerance) if same_seed else (),
        red_team=red_team,
    )


def rerun_lines(result: Rerun) -> Iterator[str]:
    """Lay a comparison out for a terminal."""
    yield f"policy    {result.policy:<14} sha256 {result.policy_sha256}"
    yield f"recorded  {result.recorded.result:<14} seed {result.recorded_seed}"
    yield f"repeated  {result.repeated.result:<14} seed {result.seed}"
    for row in result.environment:
        yield f"  not as recorded: {row.place} {_or_absent(row.recorded)}, here {_or_absent(row.repeated)}"
    if result.groups:
        yield from _group_lines(result)
    for row in result.gates:
        yield f"gate {row.place}: {_or_absent(row.recorded)} recorded, {_or_absent(row.repeated)} now"
    yield ""
    if result.red_team:
        yield "A red team's findings belong to this claim. They were not measured again; its verdict may be lower."
    yield f"Result: {_conclusion(result)}"


def _group_lines(result: Rerun) -> Iterator[str]:
    yield ""
    yield f"  {'part':<12}{'numbers':>8}{'largest difference':>20}  at"
    for group in result.groups:
        yield f"  {group.group:<12}{group.numbers:>8}{group.largest:>20.3g}  {group.place}"
    differing = [row for group in result.groups for row in group.differing]
    if differing:
        yield ""
        yield f"Not the same (tolerance {result.tolerance:g} of the larger number or of 1):"
    for row in differing[:_SHOWN]:
        yield f"  {row.place}: {_or_absent(row.recorded)} recorded, {_or_absent(row.repeated)} now"
    if len(differing) > _SHOWN:
        yield f"  and {len(differing) - _SHOWN} more"


def _or_absent(text: str | None) -> str:
    return "absent" if text is None else text


def _conclusion(result: Rerun) -> str:
    if result.same_seed:
        return "reproduced, every number within the tolerance." if result.holds else "not reproduced."
    if not result.holds:
        return "not the recorded verdict under this seed."
    return f"the recorded verdict again; {len(result.gates)} gates differ under this seed."
