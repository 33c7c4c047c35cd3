"""What every test of the portal needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.core.cache import cache

from tests.flow.conftest import case, simulator  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def _fresh_limits() -> Iterator[None]:
    """Each test has its own budget of pages."""
    cache.clear()
    yield
    cache.clear()
