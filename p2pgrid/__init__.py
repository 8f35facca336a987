"""p2pgrid: peers sell and buy inference, and both sides sign what was used.

    async with p2pgrid.Client() as client:
        answer = await client.chat(model="smollm2-135m-instruct", messages=[{"role": "user", "content": "Hello!"}])

The public names are `Client` (buy), `Provider` (sell) and `audit_files` (verify exported bundles). They are imported
when they are first used, so that `import p2pgrid` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from p2pgrid.audit import audit_files as audit_files
    from p2pgrid.client.client import Client as Client
    from p2pgrid.provider.node import Provider as Provider

__version__ = "0.1.0"
__all__ = ["Client", "Provider", "audit_files"]

_HOMES: Final = {
    "Client": "p2pgrid.client.client",
    "Provider": "p2pgrid.provider.node",
    "audit_files": "p2pgrid.audit",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'p2pgrid' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
