"""A second process that takes a part of every training step: its gradient, at the weights this process has.

The parts of a step are added up, so whoever computes them, the sum is the same to the last bit. The other process
(`ml.unlearn_beside`) needs nothing but the specification and each step's weights, and may die at any time: what it did
not answer is computed here. Weights and gradients pass through shared memory that no file name leads to.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Final, cast

import torch
from torch import Tensor, nn

from ml.documents import Json
from ml.loop import StepFunction

STEP_BYTES: Final = 8
_FLOAT_BYTES: Final = 4
# A step takes well under a second; a process that was suspended must not hold up a run for ever.
_PATIENCE_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Share:
    """A part of every step that another process may take.

    `step` computes it; `prepare` computes beforehand what of a later step does not depend on its weights.
    """

    step: StepFunction
    prepare: Callable[[int], None]


class Exchange:
    """Shared memory for the weights of a step and for its gradients, float32, in the order of `parameters`."""

    def __init__(self, descriptor: int, parameters: Sequence[nn.Parameter]) -> None:
        memory = mmap.mmap(descriptor, exchange_bytes(parameters))
        sizes = [parameter.numel() for parameter in parameters]
        weights, gradients = torch.frombuffer(memory, dtype=torch.float32).chunk(2)
        self.weights = _shaped(weights.split(sizes), parameters)
        self.gradients = _shaped(gradients.split(sizes), parameters)

    def put_weights(self, parameters: Sequence[nn.Parameter]) -> None:
        """Show what the parameters hold."""
        for place, parameter in zip(self.weights, parameters, strict=True):
            place.copy_(parameter.detach())

    def put_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Show the parameters' gradients; one that was not reached is zero."""
        for place, parameter in zip(self.gradients, parameters, strict=True):
            place.copy_(torch.zeros_like(place) if parameter.grad is None else parameter.grad)


def _shaped(pieces: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def exchange_bytes(parameters: Sequence[nn.Parameter]) -> int:
    """Size of an `Exchange`."""
    return 2 * _FLOAT_BYTES * sum(parameter.numel() for parameter in parameters)


class SecondProcess:
    """The other process as a run sees it: asked at the start of a step, answering before its end."""

    def __init__(self, process: subprocess.Popen[bytes], exchange: Exchange) -> None:
        self._process: subprocess.Popen[bytes] | None = process
        self._exchange = exchange
        self._timer: threading.Timer | None = None

    def ask(self, step: int, parameters: Sequence[nn.Parameter]) -> None:
        """Show the weights of a step; a process that has ended is not asked again."""
        if self._process is None:
            return
        self._timer = threading.Timer(_PATIENCE_SECONDS, self._process.kill)
        self._timer.daemon = True
        self._timer.start()
        self._exchange.put_weights(parameters)
        try:
            pipe = cast(IO[bytes], self._process.stdin)
            pipe.write(step.to_bytes(STEP_BYTES, "little"))
            pipe.flush()
        except OSError:
            self.leave()

    def answer(self, parameters: Sequence[nn.Parameter]) -> Mapping[str, Tensor] | None:
        """Add the gradients of the step that was asked for; return the numbers to watch, `None` without an answer."""
        if self._process is None:
            return None
        line = cast(IO[bytes], self._process.stdout).readline()
        if not line.endswith(b"\n"):
            self.leave()
            return None
        if self._timer is not None:
            self._timer.cancel()
        for parameter, gradient in zip(parameters, self._exchange.gradients, strict=True):
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
        return {name: torch.tensor(value) for name, value in json.loads(line).items()}

    def leave(self) -> None:
        """Ask the other process no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._process = None


@contextmanager
def beside(task: Mapping[str, Json], parameters: Sequence[nn.Parameter]) -> Iterator[SecondProcess]:
    """Start the other process with what it needs to know; it ends with the block, and with this process."""
    command = [sys.executable, "-m", "ml.unlearn_beside"]
    with _memory(exchange_bytes(parameters)) as descriptor:
        # Its messages could hold what it reads.
        quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
        process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=pipe, stdout=pipe, stderr=quiet, pass_fds=(descriptor,)
        )
        second = SecondProcess(process, Exchange(descriptor, parameters))
        try:
            with suppress(OSError):
                asked = cast(IO[bytes], process.stdin)
                asked.write(json.dumps({**task, "memory": descriptor}).encode() + b"\n")
                asked.flush()
            yield second
        finally:
            second.leave()
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    cast(IO[bytes], stream).close()


@contextmanager
def _memory(size: int) -> Iterator[int]:
    """A file descriptor of `size` bytes that no name leads to."""
    with _unnamed_file() as file:
        file.truncate(size)
        yield file.fileno()


def _unnamed_file() -> IO[bytes]:
    # Only Linux keeps it in memory for certain.
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("exchange"), "w+b")
    return tempfile.TemporaryFile()
