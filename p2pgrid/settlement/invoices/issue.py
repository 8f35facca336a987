"""Documents as files: written, validated, and only then put on disk, never over another."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path

from p2pgrid.errors import LocalError
from p2pgrid.settlement.invoices.cii import write_cii
from p2pgrid.settlement.invoices.document import Document
from p2pgrid.settlement.invoices.factur_x import XML_NAME, write_factur_x
from p2pgrid.settlement.invoices.pdfa import embedded_files, pdfa_faults
from p2pgrid.settlement.invoices.profiles import Profile, Syntax
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.ubl import write_ubl
from p2pgrid.settlement.invoices.validate import Validator, Written


class Format(Enum):
    """What a document can be issued as. The value is the end of the file's name."""

    CII = ".cii.xml"
    UBL = ".ubl.xml"
    FACTUR_X = ".pdf"
    """The page for people with EN 16931's CII inside, whatever the profile of the XML files beside it."""


def formats_of(profile: Profile) -> tuple[Format, ...]:
    """Everything that a buyer with this profile can be given."""
    return (*(Format[syntax.name] for syntax in profile.syntaxes), Format.FACTUR_X)


def rendered(document: Document, formats: Iterable[Format], validator: Validator) -> dict[Format, bytes]:
    """The document in each format, all of them valid.

    Raises InvoiceRefused, its `code` the rule that is broken (`not-checked` where no check could be made, `pdf-a` for
    the page), LocalError where a library is missing.
    """
    made: dict[Format, bytes] = {}
    for form in formats:
        if form is Format.FACTUR_X:
            made[form] = _factur_x(dataclasses.replace(document, profile=Profile.EN16931), validator)
        else:
            made[form] = _xml(document, Syntax[form.name], validator)
    return made


def issue(document: Document, formats: Sequence[Format], folder: Path, stem: str, validator: Validator) -> list[Path]:
    """Write the document as files `stem` + format in the folder. Nothing is written unless everything is valid.

    Raises as `rendered` does; LocalError where a file of that name is there already, or cannot be written. What was
    written before that is taken away again.
    """
    files = {
        folder / f"{stem}{form.value}": content for form, content in rendered(document, formats, validator).items()
    }
    written: list[Path] = []
    try:
        for path, content in files.items():
            write_new(path, content)
            written.append(path)
    except LocalError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return written


def write_new(path: Path, content: bytes) -> None:
    """Put a file on disk whole, or not at all, and never over another. Raises LocalError."""
    try:
        handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(name, path)  # unlike a rename it does not replace
        finally:
            Path(name).unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError as error:
        raise LocalError(f"{path} is there already; a document is never overwritten.") from error
    except OSError as error:
        raise LocalError(
            f"{path} cannot be written: {error}.", hint="Free the disk or choose another folder."
        ) from error


def _xml(document: Document, syntax: Syntax, validator: Validator) -> bytes:
    xml = write_cii(document) if syntax is Syntax.CII else write_ubl(document)
    written = Written(xml=xml, profile=document.profile, syntax=syntax, is_credit_note=document.is_credit_note)
    validator.check(written).refuse(f"{document.number} as {syntax.value}")
    return xml


def _factur_x(document: Document, validator: Validator) -> bytes:
    cii = _xml(document, Syntax.CII, validator)
    pdf = write_factur_x(document, cii)
    faults = pdfa_faults(pdf)
    if faults or embedded_files(pdf).get(XML_NAME) != cii:
        raise InvoiceRefused(
            "pdf-a", f"the page of {document.number} is no PDF/A-3: {faults[0] if faults else 'other XML inside'}."
        )
    return pdf
