"""Training checkpoints: one safetensors file that appears whole or not at all.

Tensors are the trained weights, the optimiser's state and the random state; scalars travel as JSON in the file's
header. No pickle is ever written or read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ml.errors import CheckpointError
from ml.files import write_atomically

_FORMAT = "1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after `step` steps of the run whose configuration has digest `config_sha256`."""

    step: int
    config_sha256: str
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Any]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` under a temporary name, flush it to disk, then rename it to `path`."""
    header = {
        "format": _FORMAT,
        "step": str(checkpoint.step),
        "config_sha256": checkpoint.config_sha256,
        "scalars": json.dumps(dict(checkpoint.scalars), sort_keys=True),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, metadata=header))


def read_checkpoint(path: Path, *, config_sha256: str) -> Checkpoint | None:
    """Return the checkpoint at `path`, or `None` when there is none.

    Raises:
        CheckpointError: unreadable, or made by a run of another configuration.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        step, scalars = int(header["step"]), json.loads(header["scalars"])
    except (SafetensorError, OSError, KeyError, ValueError) as exc:
        raise CheckpointError(f"checkpoint {path.name} cannot be read; delete it to start the run again") from exc
    if header.get("format") != _FORMAT or header.get("config_sha256") != config_sha256:
        raise CheckpointError(
            f"checkpoint {path.name} belongs to a run of another configuration; give this run its own directory"
        )
    return Checkpoint(step, config_sha256, tensors, scalars)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name every tensor of an optimiser's per-parameter state."""
    state = optimiser.state_dict()["state"]
    return {f"optimiser.{index}.{key}": value for index, row in state.items() for key, value in row.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` returned; hyper-parameters stay those of `optimiser`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimiser":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
