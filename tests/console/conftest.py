"""What every test of the console needs: a case brought as far as the test wants, and machine learning that passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.core.cache import cache

from tests.flow.conftest import case, simulator  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def _fresh_limits() -> Iterator[None]:
    """Each test has its own budget of attempts."""
    cache.clear()
    yield
    cache.clear()
