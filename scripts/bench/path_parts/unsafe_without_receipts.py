"""UNSAFE, for the benchmark alone: `p2pgrid` without signatures, and without records of orders and receipts.

    python -m path_parts.unsafe_without_receipts --data DIR serve ...

Nothing is signed, every signature is taken for good, and the ledger drops orders, meters, vouchers and receipts (so the
log has none either). What is left is the path itself: HTTP, the link, counting, hashing. The difference to the real one
is what receipts cost. Never connect such a process to anything but another one.
"""

from __future__ import annotations

import asyncio
from typing import Final

from p2pgrid.ledger.sqlite import SqliteLedger
from p2pgrid.proto.keys import SIGNATURE_BYTES, PublicKey, SecretKey
from p2pgrid.proto.messages import Meter, Order, Receipt, Voucher
from p2pgrid.proto.record import Message, Signed

DROPPED: Final = (Order, Meter, Voucher, Receipt)
_append = SqliteLedger.append


def _sign_nothing(self: SecretKey, message: bytes) -> bytes:
    return bytes(SIGNATURE_BYTES)


def _believe(self: PublicKey, message: bytes, signature: bytes) -> bool:
    return True


def _append_others(self: SqliteLedger, *signed: Signed[Message]) -> asyncio.Future[None]:
    kept = [one for one in signed if not isinstance(one.message, DROPPED)]
    if kept:
        return _append(self, *kept)
    future = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


def _keep_no_key(self: SqliteLedger, order: Signed[Order], key: bytes) -> None:
    return


def main() -> None:
    """Take receipts out, then run the command."""
    SecretKey.sign = _sign_nothing  # type: ignore[method-assign]
    PublicKey.verify = _believe  # type: ignore[method-assign]
    SqliteLedger.append = _append_others  # type: ignore[method-assign]
    SqliteLedger.keep_request_key = _keep_no_key  # type: ignore[method-assign]
    from p2pgrid.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
