"""What many tests of `ml` share: one small world, memorised once for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from filelock import FileLock

from tests.tiny import TinyWorld, tiny_memorised


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small models train slower on two threads than on one, and other tests run beside them.

    Before any fixture of the module: bytes of a model are compared with bytes made on as many threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> TinyWorld:
    """A memorised world on disk, made by the process that needs it first; tests read it and write elsewhere."""
    torch.set_num_threads(1)
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent
    with FileLock(shared / "tiny.lock"):
        return tiny_memorised(shared / "tiny")
