"""From a batch to files on disk: written down first, then written out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

from p2pgrid.errors import LocalError, UsageError
from p2pgrid.settlement.paying.orders_book import Batch, Ordered, OrdersBook
from p2pgrid.settlement.payments.orders import PaymentBatch
from p2pgrid.settlement.payments.rail_files import write_new
from p2pgrid.settlement.payments.rails import NamedRail


def order_batch(
    book: OrdersBook,
    rail: NamedRail,
    batch: PaymentBatch,
    rows: Sequence[Ordered],
    folder: Path,
    now_ms: int,
    *,
    taken_back: Collection[str] = (),
) -> list[Path]:
    """Make the batch's files, remember its orders, and only then write the files; their paths. `taken_back`: keys of
    earlier orders that are withdrawn with it.

    Where this ends in between, the orders are known and the files are kept: `write_again` writes the same ones.
    Raises UsageError (the folder is missing, an order was ordered before), LocalError (the schema refuses the file, the
    disk), LedgerError.
    """
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist.", hint="Create it, or name another with --out.")
    created = datetime.fromtimestamp(now_ms // 1000, UTC)
    files = rail.write(batch, created=created)
    made = Batch(
        message_id=batch.message_id,
        rail=rail.name,
        execution_date=batch.execution_date.isoformat(),
        payer_iban=batch.payer.iban,
        ordered_ms=now_ms,
        written_ms=None,
        folder="",
    )
    taken = [folder / file.name for file in files if (folder / file.name).exists()]
    if taken:
        raise UsageError(f"{taken[0]} is there already.", hint="Move it away, or name another folder with --out.")
    book.order(made, files, rows, taken_back=taken_back)
    try:
        paths = [write_new(folder, file) for file in files]
    except LocalError as error:
        again = f"p2pgrid pay --file {batch.message_id}"
        raise LocalError(error.message, hint=f"The payments are ordered; when that is mended: {again}") from error
    book.written(batch.message_id, str(folder.resolve()), now_ms)
    return paths


def unwritten(book: OrdersBook) -> list[Batch]:
    """Batches of which nobody knows whether their files came to disk, and which `write_again` writes. Raises
    LedgerError."""
    withdrawn = _withdrawn(book)
    return [one for one in book.batches() if one.written_ms is None and one.message_id not in withdrawn]


def write_again(book: OrdersBook, message_id: str, folder: Path, now_ms: int) -> list[Path]:
    """Write a batch's files once more: the same bytes, under the same message id. Raises UsageError (for one of which
    a payment was taken back, too: it may have been ordered anew since), LocalError."""
    found = [one for one in book.batches() if one.message_id.startswith(message_id.strip().upper())]
    if len(found) != 1 or not message_id.strip():
        what = "no payment file's" if not found else "more than one payment file's"
        raise UsageError(f"{what} id begins with {message_id[:40]!r}.", hint="`p2pgrid pay --list` shows them.")
    batch = found[0]
    if batch.message_id in _withdrawn(book):
        raise UsageError(
            f"a payment of {batch.message_id} was taken back with --again, and may have been ordered anew.",
            hint=f"If the bank never had that file, order its other payments anew, too: pay --again {batch.message_id}",
        )
    paths = [write_new(folder, file) for file in book.files(batch.message_id)]
    book.written(batch.message_id, str(folder.resolve()), now_ms)
    return paths


def _withdrawn(book: OrdersBook) -> set[str]:
    """The message ids of batches of which a payment was withdrawn."""
    return {one.message_id for one in book.orders() if one.withdrawn_ms is not None}
