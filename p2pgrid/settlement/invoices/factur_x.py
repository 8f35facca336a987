"""A document as Factur-X: a PDF/A-3 page for people, with the CII inside for programs.

fpdf2 draws and holds itself to PDF/A-3; factur-x says what the metadata has to be. Both are given every date, so the
same document gives the same bytes.
"""

from __future__ import annotations

from datetime import UTC, datetime, time
from typing import Final

from p2pgrid.settlement.invoices.document import Document
from p2pgrid.settlement.invoices.libraries import library
from p2pgrid.settlement.invoices.page import draw_page, subject_of, title_of

XML_NAME: Final = "factur-x.xml"
_CREATOR: Final = "p2pgrid"


def write_factur_x(document: Document, cii: bytes) -> bytes:
    """The page with its XML inside. The XML must be the document's, and valid already.

    Raises InvoiceRefused (`glyph`) for a text that the page cannot show, LocalError where a library is missing.
    """
    sheets = draw_page(document)
    made = datetime.combine(document.issue_date, time(), UTC)
    sheets.pdf.set_creator(_CREATOR)
    sheets.pdf.set_producer(_CREATOR)
    sheets.pdf.set_xmp_metadata(_metadata(document, made))
    sheets.pdf.embed_file(
        bytes=cii,
        basename=XML_NAME,
        mime_type="text/xml",
        associated_file_relationship="Alternative",
        desc="Factur-X invoice",
        modification_date=made,
        compress=True,
        checksum=True,
    )
    for supporting in document.supporting:
        if supporting.attachment is not None:
            sheets.pdf.embed_file(
                bytes=supporting.attachment.content,
                basename=supporting.attachment.filename,
                mime_type=supporting.attachment.mime,
                associated_file_relationship="Supplement",
                desc=supporting.description,
                modification_date=made,
                compress=True,
                checksum=True,
            )
    return bytes(sheets.pdf.output())


def _metadata(document: Document, made: datetime) -> str:
    tree = library("facturx.facturx").generate_xmp_object(
        {
            "pdfa3_flavor": "B",
            "title": title_of(document),
            "author": document.seller.name,
            "subject": subject_of(document),
            "producer": _CREATOR,
            "creator_tool": _CREATOR,
            "timestamp": made.isoformat(timespec="seconds"),
            "version": "1.0",
            "documenttype": "INVOICE",
            "xml_filename": XML_NAME,
            "xmp_level": "EN 16931",
            "urn": "urn:factur-x:pdfa:CrossIndustryDocument:invoice:1p0#",
        }
    )
    return str(library("lxml.etree").tostring(tree, encoding="unicode"))
