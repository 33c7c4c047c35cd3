"""What many tests of `ml` share: one small world, memorised once for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.tiny import TinyWorld, tiny_memorised


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small models train slower on two threads than on one, and other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """A memorised world on disk; tests read it and write elsewhere."""
    torch.set_num_threads(1)
    return tiny_memorised(tmp_path_factory.mktemp("tiny"))
