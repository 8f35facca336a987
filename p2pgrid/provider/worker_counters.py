"""Names of what a provider's processes count together, beside slots and bodies (`admission`)."""

from __future__ import annotations

from typing import Final

LIVE_ORDERS: Final = "live orders"
BROKEN: Final = "broken channels"
