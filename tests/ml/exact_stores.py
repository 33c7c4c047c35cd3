"""Stores of the exact tier whose adapters are files of any bytes: enough for everything but training and serving."""

from __future__ import annotations

from pathlib import Path

from ml.digests import sha256_hex
from ml.exact.plan import Plan, Slice
from ml.exact.store import AdapterEntry, ExactManifest, ExactSettings, adapter_path, write_manifest

SLICES = (Slice("a", ("1", "2")), Slice("b", ("3",)), Slice("c", ("4",)))
STACKED = Plan("stacked", SLICES, ((0, 1, 2), (2, 0, 1), (1, 2, 0)), ((2,), (1,), (0,)))
SEPARATE = Plan("separate", SLICES, ((0,), (1,), (2,)), ((0, 1, 2),))
BASE = "b" * 64


def filled(store: Path, plan: Plan) -> ExactManifest:
    """A store that holds every adapter of `plan`."""
    (store / "adapters").mkdir(parents=True)
    entries = []
    for number, order in enumerate(plan.orders):
        for position, part in enumerate(order):
            weights = f"{plan.kind} {order[: position + 1]}".encode()
            adapter_path(store, number, position).write_bytes(weights)
            entries.append(
                AdapterEntry(
                    order=number,
                    position=position,
                    slice=plan.slices[part].name,
                    layers=plan.groups[position],
                    records=len(plan.slices[part].records),
                    records_sha256="r" * 64,
                    lineage_sha256="f" * 64,
                    seed=1,
                    steps=1,
                    sha256=sha256_hex(weights),
                    environment={"torch": "2"},
                )
            )
    manifest = ExactManifest(BASE, plan, ExactSettings(), 0, "cpu", "float32", tuple(entries))
    write_manifest(store, manifest)
    return manifest
