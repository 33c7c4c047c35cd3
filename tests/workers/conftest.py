"""Cases for tests of the workers."""

from tests.flow.conftest import case, simulator  # noqa: F401 - fixtures
