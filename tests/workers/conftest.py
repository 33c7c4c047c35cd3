"""Cases for tests of the workers."""

from tests.flow.conftest import case, simulator, tiny, undisturbed  # noqa: F401 - fixtures
