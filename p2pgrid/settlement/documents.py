"""Documents as files: those that this node issued, and those that it was given.

    <data>/invoices/issued/2027/INV-2027-000001.pdf           .cii.xml, .ubl.xml beside it
    <data>/invoices/received/12D3KooW.../LT-2027-000007.pdf   .cii.xml beside it
    <data>/invoices/refused/12D3KooW.../LT-2027-000008.pdf    what does not fit, and .txt with the reason

What a peer sends is looked through before it counts: the file is the one that the peer signed, and says what record,
statement and billing details say. What does not fit is kept apart, for whoever asks the peer about it.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pgrid.clock import unix_ms
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.statement import Invoice, Statement
from p2pgrid.settlement.database import FILE_NAME, open_database, prepare, transaction
from p2pgrid.settlement.details import DetailsBook
from p2pgrid.settlement.document_check import Expected, check_document
from p2pgrid.settlement.document_facts import MAX_BYTES, DocumentRefused, facts_of, xml_in_pdf
from p2pgrid.settlement.invoices.issue import Format, write_new
from p2pgrid.settlement.issued_files import make_folder, read_file

MAX_REFUSED: Final = 100
"""Documents of one peer that do not fit, of which the files are kept; of more only the reason is."""
_STEPS: Final = (
    """CREATE TABLE received (
        invoice BLOB PRIMARY KEY, peer TEXT NOT NULL, number TEXT NOT NULL, stem TEXT NOT NULL, code TEXT NOT NULL,
        message TEXT NOT NULL, received_ms INTEGER NOT NULL, UNIQUE (peer, stem)) STRICT""",
)
_STEM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A document that came from a peer."""

    invoice: bytes
    """The Invoice record's id."""
    number: str
    peer: str
    files: tuple[Path, ...]
    """What there is of it, the file that the record is about first."""
    code: str = ""
    """Empty if all is well; else what does not fit: `hash`, `net`, `iban`, ... (docs/settlement/issuing.md)."""
    message: str = ""
    received_ms: int = 0

    @property
    def is_refused(self) -> bool:
        """True for what lies in the folder of what does not fit."""
        return bool(self.code)


class Documents:
    """The invoices' folders in a data folder, and what is known of the files."""

    def __init__(
        self,
        data_folder: Path,
        connection: sqlite3.Connection | None = None,
        *,
        now_ms: Callable[[], int] = unix_ms,
    ) -> None:
        """`connection`: of `database.open_database`; left out, one of its own. Raises LedgerError."""
        self.folder: Final = data_folder / "invoices"
        self._connection: Final = connection or open_database(data_folder / FILE_NAME)
        self._details: Final = DetailsBook(self._connection, now_ms)
        self._now_ms: Final = now_ms
        prepare(self._connection, "received", _STEPS)

    @property
    def issued_folder(self) -> Path:
        """With a folder for each year in it."""
        return self.folder / "issued"

    @property
    def received_folder(self) -> Path:
        """With a folder for each peer in it, by its peer id."""
        return self.folder / "received"

    @property
    def refused_folder(self) -> Path:
        """Likewise, for what does not fit."""
        return self.folder / "refused"

    # -- what comes from a peer -------------------------------------------------------------------------------------

    def take_received(
        self,
        invoice: Signed[Invoice],
        content: bytes,
        *,
        channel: Channel,
        statement: Signed[Statement] | None,
        by: Role = Role.PROVIDER,
    ) -> Received:
        """Look through the file of an invoice that the provider signed, and keep it with what came from the peer that
        wrote it: the one in the role `by`.

        Blocking, up to some seconds for a PDF. Whatever is wrong with the document is in what is returned (`code`,
        `message`), and the file among those that do not fit. A document that was taken once is not taken again; one
        that did not fit may be, if it comes anew. Raises LocalError, LedgerError for what is wrong here.
        """
        known = self.received(invoice.id)
        if known is not None and not known.is_refused:
            return known
        peer = parse_public_key(channel.client if by is Role.CLIENT else channel.provider).peer_id
        try:
            beside = self._check(invoice, content, channel, statement)
        except DocumentRefused as refused:
            return self._keep(invoice, peer, content, {}, refused.code, refused.message)
        return self._keep(invoice, peer, content, beside)

    def received(self, invoice: bytes) -> Received | None:
        """What is known of the document of an Invoice record (its id)."""
        return next(iter(self._rows("WHERE invoice = ?", invoice)), None)

    def all_received(self) -> list[Received]:
        """Every document that came, in the order in which they did."""
        return self._rows("")

    # -- inside -----------------------------------------------------------------------------------------------------

    def _check(
        self, invoice: Signed[Invoice], content: bytes, channel: Channel, statement: Signed[Statement] | None
    ) -> dict[Format, bytes]:
        """What is kept beside the file: the XML inside a PDF. Raises DocumentRefused, LocalError."""
        if len(content) > MAX_BYTES:
            raise DocumentRefused("size", f"the document has {len(content)} bytes; {MAX_BYTES} are the most.")
        if hashlib.sha256(content).digest() != invoice.message.document_sha256:
            raise DocumentRefused("hash", "the file is another one than the provider signed (SHA-256).")
        if statement is None or statement.id != invoice.message.statement or Role.CLIENT not in statement.signers:
            raise DocumentRefused("statement", "the invoice is for a statement that both sides have not signed.")
        beside = {Format.CII: xml_in_pdf(content)} if content[:5] == b"%PDF-" else {}
        check_document(
            facts_of(beside.get(Format.CII, content)),
            Expected(
                invoice=invoice.message,
                statement=statement.message,
                statement_id=statement.id,
                seller=[one.message for one in self._details.all_of(channel.provider, Role.PROVIDER)],
                buyer=[one.message for one in self._details.all_of(channel.client, Role.CLIENT)],
            ),
        )
        return beside

    def _keep(
        self,
        invoice: Signed[Invoice],
        peer: str,
        content: bytes,
        beside: dict[Format, bytes],
        code: str = "",
        message: str = "",
    ) -> Received:
        """Files first, then the row: a crash in between leaves files that the next time finds to be the same."""
        number, now_ms = invoice.message.invoice_number, self._now_ms()
        stem = self._stem(invoice, peer)
        folder = (self.refused_folder if code else self.received_folder) / peer
        make_folder(folder)
        files = {stem + form.value: data for form, data in beside.items()}
        files[stem + _suffix_of(content)] = content[: MAX_BYTES + 1]
        if code:
            count = sum(1 for one in self.all_received() if one.peer == peer and one.is_refused)
            files = {} if count >= MAX_REFUSED else files
            files[stem + ".txt"] = f"{code}: {message}\n".encode()
        for name, data in files.items():
            _write(folder / name, data, may_replace=bool(code))
        if not code:
            for old in (self.refused_folder / peer).glob(f"{stem}.*"):
                old.unlink(missing_ok=True)
        with transaction(self._connection):
            self._connection.execute(
                "INSERT OR REPLACE INTO received VALUES (?, ?, ?, ?, ?, ?, ?)",
                (invoice.id, peer, number, stem, code, message, now_ms),
            )
        kept = self.received(invoice.id)
        assert kept is not None
        return kept

    def _stem(self, invoice: Signed[Invoice], peer: str) -> str:
        """A file's name that the peer has not chosen: the number if it is a plain one, and never one that is taken."""
        known = self._connection.execute("SELECT stem FROM received WHERE invoice = ?", (invoice.id,)).fetchone()
        if known is not None:
            return str(known[0])
        number = invoice.message.invoice_number
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", number)
        taken = self._connection.execute(
            "SELECT 1 FROM received WHERE peer = ? AND lower(stem) = lower(?)", (peer, plain)
        ).fetchone()
        if plain != number or not _STEM.fullmatch(plain) or taken is not None:
            return f"{plain.lstrip('_-')[:40]}_{invoice.id.hex()[:16]}"
        return plain

    def _rows(self, where: str, *values: bytes) -> list[Received]:
        rows = self._connection.execute(
            f"SELECT invoice, peer, number, stem, code, message, received_ms FROM received {where} ORDER BY rowid",  # noqa: S608
            values,
        )
        return [
            Received(
                invoice=row[0],
                peer=row[1],
                number=row[2],
                files=self._files(row[1], row[3], is_refused=bool(row[4])),
                code=row[4],
                message=row[5],
                received_ms=row[6],
            )
            for row in rows
        ]

    def _files(self, peer: str, stem: str, *, is_refused: bool) -> tuple[Path, ...]:
        folder = (self.refused_folder if is_refused else self.received_folder) / peer
        suffixes = (Format.FACTUR_X.value, Format.CII.value, Format.UBL.value, ".bin", ".txt")
        return tuple(path for suffix in suffixes if (path := folder / f"{stem}{suffix}").exists())


def _suffix_of(content: bytes) -> str:
    if content[:5] == b"%PDF-":
        return Format.FACTUR_X.value
    head = content[:4096]
    if b"CrossIndustryInvoice" in head:
        return Format.CII.value
    return Format.UBL.value if b"urn:oasis:names:specification:ubl" in head else ".bin"


def _write(path: Path, content: bytes, *, may_replace: bool) -> None:
    """Raises LocalError: another file is there, or the disk does not take it."""
    there = read_file(path)
    if there == content:
        return
    if there is not None and may_replace:
        path.unlink(missing_ok=True)
    write_new(path, content)
