"""Signatures of records as the ledger keeps them: those that were checked, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from p2pgrid.errors import LedgerError
from p2pgrid.proto.record import Message, Record, Signature, Signed

BOTH_ROLES: Final = "client,provider"
"""`signed_by` of a record with both signatures."""


def checked_record(signed: Signed[Message]) -> Record:
    """The record with those signatures that were checked; a peer may have added others, and they prove nothing."""
    record, signers = signed.record, signed.signers
    for signature in record.signatures:
        if signature.role not in signers or signature.key != signers[signature.role].raw:
            break
    else:
        return record
    checked = tuple(s for s in record.signatures if s.role in signers and s.key == signers[s.role].raw)
    return Record(record.payload_type, record.payload, checked)


def merged_signatures(stored: Sequence[Signature], new: Sequence[Signature]) -> tuple[Signature, ...]:
    """What stands stays as it is; signatures in other roles are added."""
    roles = {s.role for s in stored}
    return (*stored, *(s for s in new if s.role not in roles))


def signed_by(record: Record) -> str:
    """The roles of a record's signatures, as the column `signed_by` has them."""
    if len(record.signatures) == 1:
        return record.signatures[0].role.value
    return ",".join(sorted({s.role.value for s in record.signatures}))


def encode_signatures(signatures: Sequence[Signature]) -> bytes:
    """The column `signatures`."""
    return msgspec.msgpack.encode(signatures)


def decode_signatures(blob: bytes) -> tuple[Signature, ...]:
    """The column `signatures`, read back. Raises LedgerError if it is damaged."""
    try:
        return _signatures_decoder.decode(blob)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise damaged(f"its signatures cannot be read ({error})") from None


def damaged(what: str) -> LedgerError:
    """The error for rows that are not what was written."""
    return LedgerError(
        f"a record in the ledger is damaged: {what.rstrip('.')}.",
        hint="Stop the node, keep a copy of the file, and restore the ledger from a backup.",
    )


_signatures_decoder: Final = msgspec.msgpack.Decoder(tuple[Signature, ...])
