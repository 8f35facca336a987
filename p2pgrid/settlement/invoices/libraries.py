"""The libraries of the extra `settle`, loaded when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from p2pgrid.errors import LocalError

INSTALL_HINT = "Install it: pip install 'p2pgrid[settle]'"


def library(module: str) -> Any:
    """The module. Raises LocalError, with what to install, where it is missing or cannot be loaded."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LocalError(f"invoices need the Python package of {module!r}: {error}.", hint=INSTALL_HINT) from error
