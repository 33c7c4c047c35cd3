"""Python modules of a deployer's own, named by `LETHE_VALUE_KINDS`: each registers kinds of values when it is imported.

Every process that compares values imports them (`ml.data.values` does), so that a second process and every worker know
the same kinds. A module's digest is part of the code's; tables it draws from belong inside it. Standard library only.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Final

from ml.errors import SpecError

VARIABLE: Final = "LETHE_VALUE_KINDS"


def plugin_sources() -> dict[str, Path]:
    """The modules that the environment names, in its order, with the file of each; nothing is imported.

    Raises:
        SpecError: a module is not on Python's path, or is more than one file: its digest would not cover it.
    """
    named = dict.fromkeys(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())
    return {name: _source(name) for name in named}


def import_plugins() -> None:
    """Import the modules that the environment names.

    Raises:
        SpecError: as `plugin_sources`, or a module fails while it is imported.
    """
    for name in plugin_sources():
        try:
            importlib.import_module(name)
        except Exception as exc:  # noqa: BLE001 - somebody else's code may raise anything; its words are not repeated
            kind = type(exc).__name__
            raise SpecError(f"{VARIABLE} names {name}, which fails when it is imported: {kind}") from None


def _source(name: str) -> Path:
    try:
        # A dotted name would import what stands before the dot.
        found = None if "." in name else importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.has_location or found.submodule_search_locations is not None:
        raise SpecError(f"{VARIABLE} names {name}; give the name of one module, a single file on Python's path")
    return Path(str(found.origin))
