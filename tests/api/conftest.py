"""What every test of the REST door needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import cache

from tests.doors import Machine
from tests.flow.conftest import case, simulator  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def _fresh_limits() -> Iterator[None]:
    """Each test has its own budget of calls."""
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def sender(db: Any) -> Machine:
    """A privacy platform that sends instructions and reads what became of them."""
    return Machine("requests:write", "requests:read", "targets:read", "evidence:read", "certificates:read")
