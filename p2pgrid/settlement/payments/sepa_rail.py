"""The rail `sepa`: pain.001 to the bank, camt.053 and camt.054 from it."""

from __future__ import annotations

from datetime import datetime
from typing import BinaryIO

from p2pgrid.settlement.payments.camt053 import read_camt
from p2pgrid.settlement.payments.orders import PaymentBatch
from p2pgrid.settlement.payments.pain001 import write_pain001
from p2pgrid.settlement.payments.rail_files import RailFile
from p2pgrid.settlement.payments.statements import BankFile


class SepaRail:
    """SEPA credit transfers, instant on request, by files."""

    name = "sepa"

    def write(self, batch: PaymentBatch, *, created: datetime) -> tuple[RailFile, ...]:
        """One pain.001.001.09 file (see `write_pain001`)."""
        return (RailFile(f"pain.001-{batch.message_id}.xml", write_pain001(batch, created=created)),)

    def read(self, file: BinaryIO, name: str) -> BankFile:
        """A camt.053 or camt.054 file (see `read_camt`)."""
        return read_camt(file, name)
