"""Examples for the API description. The cast is fictitious; a test checks each one against its own schema."""

from __future__ import annotations

from typing import Any, Final

_A: Final = "a" * 64
_B: Final = "b" * 64
REQUEST_ID: Final = "req_01kexample0000000000000000"
TARGET_ID: Final = "tgt_01kexample0000000000000000"
JOB_ID: Final = "job_01kexample0000000000000000"
EVIDENCE_ID: Final = "evd_01kexample0000000000000000"
CERTIFICATE_ID: Final = "crt_01kexample0000000000000000"
MODEL_ID: Final = "mdl_01kexample0000000000000000"

REQUEST_IN: Final[dict[str, Any]] = {
    "identifiers": [{"type": "email", "value": "alice.korvel@mail.example"}],
    "statement": "Please forget what your assistant learned about me.",
    "models": ["assistant"],
    "regime": "gdpr",
    "upstream_id": "case-2026-0042",
    "due_on": "2026-12-20",
}
_TARGET_BRIEF: Final[dict[str, Any]] = {
    "id": TARGET_ID,
    "model": "assistant",
    "status": "judged",
    "verdict": "PASS",
}
REQUEST: Final[dict[str, Any]] = {
    "id": REQUEST_ID,
    "capacity": "processor",
    "regime": "gdpr",
    "status": "evidence_review",
    "outcome": None,
    "outcome_plan": "unlearn_now",
    "planned_on": None,
    "refusal": None,
    "upstream_id": "case-2026-0042",
    "models": ["assistant"],
    "attempt": 1,
    "received_at": "2026-11-20T09:30:00Z",
    "closed_at": None,
    "due_on": "2026-12-20",
    "clocks": [
        {"kind": "respond", "regime": "processor", "due_on": "2026-12-20", "state": "running", "extended": False}
    ],
    "targets": [_TARGET_BRIEF],
}
OPENED: Final[dict[str, Any]] = {**REQUEST, "status": "in_review", "attempt": 0, "targets": [], "subject_nonce": _A}
TARGET: Final[dict[str, Any]] = {
    **_TARGET_BRIEF,
    "request": REQUEST_ID,
    "record_count": "11-100",
    "layers": {"training": "rows deleted at the source", "weights": "unlearned and verified"},
    "contaminated": [
        {
            "version": 2,
            "sha256": _A,
            "action": "deleted",
            "retain_until": None,
            "probe": "gone",
            "probed_at": "2026-11-20T11:00:00Z",
        }
    ],
    "sources": [{"name": "customers", "action": "deleted", "probe": "gone", "probed_at": "2026-11-20T11:00:00Z"}],
    "evidence": [
        {"id": EVIDENCE_ID, "attempt": 1, "verdict": "PASS", "sha256": _B, "sealed_at": "2026-11-20T10:30:00Z"}
    ],
    "certificates": [
        {
            "id": CERTIFICATE_ID,
            "title": "Erasure certificate",
            "verdict": "PASS",
            "status": "published",
            "issued_at": "2026-11-20T11:10:00Z",
        }
    ],
}
JOB: Final[dict[str, Any]] = {
    "id": JOB_ID,
    "request": REQUEST_ID,
    "target": TARGET_ID,
    "kind": "unlearn",
    "state": "leased",
    "round": 1,
    "attempts": 1,
    "max_attempts": 5,
    "progress": {"phase": "unlearning", "done": 40, "total": 120},
    "cancel_requested": False,
    "last_error": None,
    "created_at": "2026-11-20T10:00:00Z",
    "started_at": "2026-11-20T10:00:05Z",
    "finished_at": None,
}
EVIDENCE: Final[dict[str, Any]] = {
    "id": EVIDENCE_ID,
    "attempt": 1,
    "verdict": "PASS",
    "sha256": _B,
    "sealed_at": "2026-11-20T10:30:00Z",
    "target": TARGET_ID,
    "policy": {"name": "reference-2", "version": 2, "purpose": "release", "sha256": _A},
    "gates": [
        {
            "id": "F1.same_context_difference.merged",
            "gate": "F1",
            "kind": "attack",
            "result": "PASS",
            "reference": "holdout_reference",
            "before": "40",
            "after": "0.1",
            "reference_value": "0",
            "measure": "residual_share",
            "value": "0.01",
            "interval": ["-0.3", "0.2"],
            "ci95": [None, "0.08"],
            "n": "28",
            "controls": "239",
        }
    ],
    "findings": [],
    "flags": [],
    "not_tested": ["Attacks by people were not tried."],
    "document": f"/v1/evidence/{EVIDENCE_ID}/document",
}
EVIDENCE_DECISION_IN: Final[dict[str, Any]] = {
    "choice": "release",
    "reason": "all_gates_passed",
    "retrain_on": None,
}
ENVELOPE: Final[dict[str, Any]] = {
    "payload": "eyJfdHlwZSI6Imh0dHBzOi8vaW4tdG90by5pby9TdGF0ZW1lbnQvdjEifQ==",
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [{"keyid": f"sha256:{_A}", "sig": "c2lnbmF0dXJl"}, {"keyid": f"sha256:{_B}", "sig": "YW5vdGhlcg=="}],
}
LOG_PROOF: Final[dict[str, Any]] = {
    "schema_version": 1,
    "leafIndex": 0,
    "treeSize": 1,
    "hashes": [],
    "checkpoint": "lethe.example/log\n1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
}
EVIDENCE_DOCUMENT: Final[dict[str, Any]] = {
    "schema_version": 1,
    "target": TARGET_ID,
    "attempt": 1,
    "policy": {},
    "report": {},
    "verdict": {},
    "unlearning": None,
}
MODEL_IN: Final[dict[str, Any]] = {
    "name": "assistant",
    "registry": {"kind": "directory", "name": "assistant"},
    "sources": [{"kind": "jsonl_directory", "name": "customers", "erase_by": "delete"}],
    "alias": "champion",
}
MODEL: Final[dict[str, Any]] = {
    "id": MODEL_ID,
    "name": "assistant",
    "alias": "champion",
    "registry": {"kind": "directory", "name": "assistant"},
    "sources": [{"kind": "jsonl_directory", "name": "customers"}],
    "serving": 2,
    "created_at": "2026-11-01T08:00:00Z",
}
VERSION_IN: Final[dict[str, Any]] = {"number": 2, "kind": "finetune", "parent": 1, "base": 1, "serving": True}
TRAINING_MANIFEST_IN: Final[dict[str, Any]] = {
    "dataset_name": "customers",
    "dataset_sha256": _A,
    "trained_on": "2026-11-01",
    "record_sha256": [_A, _B],
    "exact_store": "",
}
TRAINING_MANIFEST: Final[dict[str, Any]] = {
    "dataset_name": "customers",
    "dataset_sha256": _A,
    "record_count": 2,
    "trained_on": "2026-11-01",
    "exact_store": "",
}
VERSION: Final[dict[str, Any]] = {
    "id": "ver_01kexample0000000000000000",
    "model": "assistant",
    "number": 2,
    "kind": "finetune",
    "status": "serving",
    "parent": 1,
    "base": 1,
    "sha256": _A,
    "manifest_sha256": _B,
    "training_manifest": TRAINING_MANIFEST,
    "registered_at": "2026-11-01T08:10:00Z",
}
VERIFY_IN: Final[dict[str, Any]] = {
    "certificate": "eyJwYXlsb2FkIjoiLi4uIn0=",
    "log_proof": None,
    "evidence": None,
    "expect": "PASS",
}
VERIFICATION: Final[dict[str, Any]] = {
    "ok": True,
    "title": "Erasure certificate",
    "verdict": "PASS",
    "claim": "At 95 % confidence at most 20 % of the measurable influence remains under the attacks listed for F1.",
    "certificate_id": CERTIFICATE_ID,
    "issued_at": "2026-11-20T11:10:00Z",
    "model_sha256": _A,
    "checks": [{"name": "signatures", "outcome": "ok", "sentence": "two signatures by two distinct keys hold"}],
    "limitations": ["The statistics bound what the attacks listed could recover; another attack may recover more."],
    "not_shown": ["that the statement is true: signatures show who states it, not that it is so"],
}
ISSUER: Final[dict[str, Any]] = {
    "schema_version": 1,
    "issuer": "Example Controller",
    "keys": [
        {
            "keyid": f"sha256:{_A}",
            "role": "issuer",
            "algorithm": "ed25519",
            "publicKey": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "notBefore": "2026-11-01T00:00:00Z",
            "notAfter": "2028-11-01T00:00:00Z",
            "revokedAt": None,
        }
    ],
    "log": {"origin": "lethe.example/log"},
    "policies": [{"name": "reference-2", "version": "2", "sha256": _B}],
}


def page(item: dict[str, Any]) -> dict[str, Any]:
    """Return an example list."""
    return {"items": [item], "next_cursor": None}
