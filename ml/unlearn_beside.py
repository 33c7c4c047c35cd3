"""The second process of an unlearning run: it answers each step's weights with the gradient of what must stay.

python -m ml.unlearn_beside        (reads what to do from its standard input; started by `ml.methods.beside`)
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import BinaryIO

import torch

from ml.documents import read
from ml.energy import EnergyBoundary
from ml.methods.beside import STEP_BYTES, Exchange, Share
from ml.specs import UnlearningSpec
from ml.unlearn import kept_share


def main() -> int:
    """Answer until the asking process is gone."""
    answers = _own_output()
    task = json.loads(sys.stdin.buffer.readline())
    torch.set_num_threads(int(task["threads"]))
    # A method's own settings are any JSON; the method reads them itself.
    spec = read(UnlearningSpec, {**task["spec"], "settings": {}}, where="unlearning")
    spec = replace(spec, settings=task["spec"]["settings"])
    boundary = read(EnergyBoundary, task["boundary"], where="boundary")
    layers = None if task["layers"] is None else tuple(task["layers"])
    parameters, share = kept_share(spec, boundary, layers)
    _serve(parameters, share, Exchange(int(task["memory"]), parameters), sys.stdin.buffer, answers)
    return 0


def _own_output() -> BinaryIO:
    """Keep standard output for answers: what a library prints must not stand between them."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _serve(
    parameters: list[torch.nn.Parameter], share: Share, exchange: Exchange, asked: BinaryIO, answers: BinaryIO
) -> None:
    while len(head := asked.read(STEP_BYTES)) == STEP_BYTES:
        step = int.from_bytes(head, "little")
        with torch.no_grad():
            for parameter, value in zip(parameters, exchange.weights, strict=True):
                parameter.copy_(value)
                parameter.grad = None
        watched = share.step(step, torch.Tensor.backward)
        exchange.put_gradients(parameters)
        answers.write(json.dumps({name: float(value) for name, value in watched.items()}).encode() + b"\n")
        answers.flush()
        share.prepare(step + 1)


if __name__ == "__main__":
    raise SystemExit(main())
