"""What the tests of the audit trail need: a case that has been through everything."""

from __future__ import annotations

from tests.flow.conftest import case, simulator  # noqa: F401 - fixtures
