"""pain.001.001.09: the file by which a customer asks its bank for SEPA credit transfers (ISO 20022, 2019 version).

sepaxml would write one, but with random message ids, the clock's time, and no instant transfers; a bank could then
not tell a file sent twice. So the elements are written here, and sepaxml's copy of the ISO schema judges them: what
the schema refuses is not handed out.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from p2pgrid.errors import LocalError
from p2pgrid.settlement.payments.cents import cents_of
from p2pgrid.settlement.payments.latin import to_sepa_latin
from p2pgrid.settlement.payments.orders import Account, Address, PaymentBatch, PaymentOrder
from p2pgrid.settlement.payments.refusals import MissingLibrary
from p2pgrid.units import format_cents

if TYPE_CHECKING:
    from lxml.etree import XMLSchema, _Element

NAMESPACE: Final = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"
CURRENCY: Final = "EUR"

Tree = list[tuple[str, Any]]
"""An element's children by name, each a text or a tree. What is empty is not written; `@name` is an attribute, and
`""` the element's own text."""


class InvalidPaymentFile(LocalError):
    """The schema refused what this module wrote, or could not judge it. No file was made; it is our fault."""


def write_pain001(batch: PaymentBatch, *, created: datetime) -> bytes:
    """The batch as a pain.001.001.09 file, judged by the schema.

    The same batch and `created` give the same bytes; another `created` gives the same MsgId, PmtInfId and InstrIds, by
    which the bank refuses a file that it has had. Raises InvalidPaymentFile where the schema refuses the file or is
    not the one it should be, and MissingLibrary without the `settle` extra.
    """
    try:
        from lxml import etree
    except ImportError:
        raise MissingLibrary("lxml") from None
    root = etree.Element(f"{{{NAMESPACE}}}Document", nsmap={None: NAMESPACE})
    _fill(root, _document(batch, created))
    data = bytes(etree.tostring(root, xml_declaration=True, encoding="UTF-8", pretty_print=True))
    validate_pain001(data)
    _check_sums(data, batch)
    return data


def validate_pain001(data: bytes) -> None:
    """Judge a file by the schema of pain.001.001.09. Raises InvalidPaymentFile with the line and what is wrong."""
    from lxml import etree

    schema = _schema()
    try:
        document = etree.fromstring(data, _parser())
    except etree.XMLSyntaxError as error:
        raise InvalidPaymentFile(f"the payment file is no XML: {error}.") from None
    if not schema.validate(document):
        entries = list(schema.error_log)
        what = f"line {entries[0].line}: {entries[0].message}" if entries else "no reason given"
        raise InvalidPaymentFile(f"the payment file does not hold to its schema: {what}", hint="Nothing was written.")


@cache
def _schema() -> XMLSchema:
    """The ISO schema. A schema that takes an empty document is none: whoever judges must be able to say no."""
    try:
        from lxml import etree

        source = (files("sepaxml") / "schemas" / "pain.001.001.09.xsd").read_bytes()
    except ImportError:
        raise MissingLibrary("sepaxml") from None
    except OSError as error:
        raise InvalidPaymentFile(f"sepaxml has no schema of pain.001.001.09: {error}.") from None
    root = etree.fromstring(source, _parser())
    schema = etree.XMLSchema(root)
    if root.get("targetNamespace") != NAMESPACE or schema.validate(etree.Element(f"{{{NAMESPACE}}}Document")):
        raise InvalidPaymentFile("sepaxml's schema is not that of pain.001.001.09.", hint="Install sepaxml 2.7.0.")
    return schema


def _parser() -> Any:
    from lxml import etree

    return etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)


def _document(batch: PaymentBatch, created: datetime) -> Tree:
    count, total = str(len(batch.orders)), format_cents(batch.total_cents)
    header = [
        ("MsgId", batch.message_id),
        ("CreDtTm", created.replace(microsecond=0).isoformat()),
        ("NbOfTxs", count),
        ("CtrlSum", total),
        ("InitgPty", [("Nm", to_sepa_latin(batch.payer.name))]),
    ]
    payment = [
        ("PmtInfId", f"{batch.message_id}-1"),
        ("PmtMtd", "TRF"),
        ("BtchBookg", "false"),
        ("NbOfTxs", count),
        ("CtrlSum", total),
        ("PmtTpInf", list(_kind(instant=batch.instant))),
        ("ReqdExctnDt", [("Dt", batch.execution_date.isoformat())]),
        ("Dbtr", _party(batch.payer)),
        ("DbtrAcct", [("Id", [("IBAN", batch.payer.iban)]), ("Ccy", CURRENCY)]),
        ("DbtrAgt", [("FinInstnId", _bank(batch.payer.bic))]),
        ("ChrgBr", "SLEV"),
        *(("CdtTrfTxInf", _transfer(order)) for order in batch.orders),
    ]
    return [("CstmrCdtTrfInitn", [("GrpHdr", header), ("PmtInf", payment)])]


def _kind(*, instant: bool) -> Iterator[tuple[str, Any]]:
    yield "SvcLvl", [("Cd", "SEPA")]
    if instant:
        yield "LclInstrm", [("Cd", "INST")]


def _transfer(order: PaymentOrder) -> Tree:
    payee = order.payee
    return [
        ("PmtId", [("InstrId", order.key), ("EndToEndId", order.end_to_end_id)]),
        ("Amt", [("InstdAmt", [("@Ccy", CURRENCY), ("", format_cents(order.amount_cents))])]),
        ("CdtrAgt", [("FinInstnId", [("BICFI", payee.bic)])] if payee.bic else []),
        ("Cdtr", _party(payee)),
        ("CdtrAcct", [("Id", [("IBAN", payee.iban)])]),
        ("RmtInf", _remittance(order)),
    ]


def _remittance(order: PaymentOrder) -> Tree:
    if order.remittance_text:
        return [("Ustrd", to_sepa_latin(order.remittance_text))]
    kind = [("CdOrPrtry", [("Cd", "SCOR")]), ("Issr", "ISO")]
    return [("Strd", [("CdtrRefInf", [("Tp", kind), ("Ref", order.creditor_reference)])])]


def _party(account: Account) -> Tree:
    return [
        ("Nm", to_sepa_latin(account.name)),
        ("PstlAdr", [] if account.address is None else _address(account.address)),
    ]


def _address(address: Address) -> Tree:
    return [
        ("StrtNm", to_sepa_latin(address.street)),
        ("BldgNb", to_sepa_latin(address.building)),
        ("PstCd", to_sepa_latin(address.postcode)),
        ("TwnNm", to_sepa_latin(address.town)),
        ("Ctry", address.country),
    ]


def _bank(bic: str) -> Tree:
    """The schema wants the payer's bank named; within SEPA, "NOTPROVIDED" leaves it to the IBAN."""
    return [("BICFI", bic)] if bic else [("Othr", [("Id", "NOTPROVIDED")])]


def _fill(parent: _Element, children: Tree) -> None:
    from lxml import etree

    for name, content in children:
        if name.startswith("@"):
            parent.set(name[1:], content)
        elif not name:
            parent.text = content
        elif content:
            child = etree.SubElement(parent, f"{{{NAMESPACE}}}{name}")
            if isinstance(content, str):
                child.text = content
            else:
                _fill(child, content)


def _check_sums(data: bytes, batch: PaymentBatch) -> None:
    """Read back what was written: the amounts of the file are those of the orders, and so are count and sum."""
    from lxml import etree

    document = etree.fromstring(data, _parser())
    spaces = {"p": NAMESPACE}
    amounts = [cents_of(str(e.text)) for e in document.findall(".//p:InstdAmt", spaces)]
    counts = {e.text for e in document.findall(".//p:NbOfTxs", spaces)}
    sums = {cents_of(str(e.text)) for e in document.findall(".//p:CtrlSum", spaces)}
    ordered = [order.amount_cents for order in batch.orders]
    if amounts != ordered or counts != {str(len(ordered))} or sums != {sum(ordered)}:
        raise InvalidPaymentFile("the payment file's sums are not those of the orders.", hint="Nothing was written.")
