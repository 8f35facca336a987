"""Whether a PDF is PDF/A-3b and Factur-X, as far as pikepdf and fontTools can tell.

The reference validator (veraPDF) is a Java program that no package of ours brings, so here stand the demands of
ISO 19005-3 that a page of ours could break: nothing encrypted, nothing active, one output intent with a profile, every
font embedded with the widths that it says, metadata in clear text, associated files with kind and relationship.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any, Final

from p2pgrid.settlement.invoices.libraries import library

_ACTIVE: Final = ("/JavaScript", "/JS", "/AA", "/XFA", "/AcroForm", "/OCProperties", "/Perms", "/Requirements")
_RELATIONSHIPS: Final = {"/Source", "/Data", "/Alternative", "/Supplement", "/Unspecified"}
_DEVICE_CMYK: Final = re.compile(rb"(?<![\w.])[kK](?=\s|$)")


def pdfa_faults(pdf: bytes) -> list[str]:
    """What is wrong, in words; empty where nothing was found. Raises LocalError where pikepdf is missing."""
    pikepdf = library("pikepdf")
    try:
        with pikepdf.open(io.BytesIO(pdf), attempt_recovery=False) as opened:
            return list(_faults(opened, pdf))
    except pikepdf.PdfError as error:
        return [f"this is no PDF that can be read: {error}"]


def embedded_files(pdf: bytes) -> dict[str, bytes]:
    """The files inside, by name. Raises LocalError where pikepdf is missing, ValueError for what is no PDF."""
    pikepdf = library("pikepdf")
    try:
        with pikepdf.open(io.BytesIO(pdf)) as opened:
            return {name: spec.get_file().read_bytes() for name, spec in opened.attachments.items()}
    except pikepdf.PdfError as error:
        raise ValueError(f"this is no PDF that can be read: {error}") from error


def _faults(opened: Any, pdf: bytes) -> Iterator[str]:
    if opened.is_encrypted:
        yield "it is encrypted (6.1.3)"
    if not re.match(rb"%PDF-1\.[0-7]\n%[\x80-\xff]{4}", pdf):
        yield "the header is not followed by a line of four high bytes (6.1.2)"
    if "/ID" not in opened.trailer:
        yield "the trailer has no ID (6.1.3)"
    root = opened.Root
    yield from (f"the catalogue has {name} (6.6)" for name in _ACTIVE if name in root)
    yield from _metadata_faults(root)
    yield from _colour_faults(root)
    yield from _file_faults(root)
    for number, page in enumerate(opened.pages, start=1):
        if "/Annots" in page or "/AA" in page:
            yield f"page {number} has annotations or actions (6.3)"
        content = b"".join(part.read_bytes() for part in _parts(page.obj.get("/Contents")))
        if _DEVICE_CMYK.search(re.sub(rb"\((?:\\.|[^\\)])*\)|<[0-9A-Fa-f]*>", b"", content)):
            yield f"page {number} uses CMYK, which the output intent is not for (6.2.4.3)"
        resources = page.obj.get("/Resources", {})
        for name, state in dict(resources.get("/ExtGState", {})).items():
            if "/TR" in state or "/HTP" in state:
                yield f"page {number} has a transfer function in {name} (6.2.5)"
        for name, font in dict(resources.get("/Font", {})).items():
            yield from (f"page {number}, font {name}: {fault}" for fault in _font_faults(font))


def _parts(contents: Any) -> list[Any]:
    if contents is None:
        return []
    return list(contents) if contents._type_name == "array" else [contents]


def _metadata_faults(root: Any) -> Iterator[str]:
    if "/Metadata" not in root:
        yield "there is no metadata (6.6.2)"
        return
    if "/Filter" in root.Metadata:
        yield "the metadata is compressed (6.6.2.1)"
    etree = library("lxml.etree")
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    try:
        text = etree.fromstring(root.Metadata.read_bytes(), parser)
    except etree.XMLSyntaxError as error:
        yield f"the metadata is no XML: {error}"
        return
    wanted = {
        "{http://www.aiim.org/pdfa/ns/id/}part": "3",
        "{http://www.aiim.org/pdfa/ns/id/}conformance": "B",
        "{urn:factur-x:pdfa:CrossIndustryDocument:invoice:1p0#}DocumentFileName": "factur-x.xml",
        "{urn:factur-x:pdfa:CrossIndustryDocument:invoice:1p0#}DocumentType": "INVOICE",
        "{urn:factur-x:pdfa:CrossIndustryDocument:invoice:1p0#}ConformanceLevel": "EN 16931",
    }
    for tag, value in wanted.items():
        found = [element.text for element in text.iter(tag)]
        if found != [value]:
            yield f"the metadata says {found} for {tag.partition('}')[2]}, not {value!r} (6.6.4)"
    if text.find(".//{http://www.aiim.org/pdfa/ns/extension/}schemas") is None:
        yield "the metadata does not explain its own terms (6.6.2.3)"


def _colour_faults(root: Any) -> Iterator[str]:
    intents = [intent for intent in root.get("/OutputIntents", []) if intent.get("/S") == "/GTS_PDFA1"]
    if len(intents) != 1 or "/DestOutputProfile" not in intents[0]:
        yield "there is not one output intent with a profile (6.2.3)"
    elif intents[0].DestOutputProfile.get("/N") != 3 or b"RGB " not in intents[0].DestOutputProfile.read_bytes()[:24]:
        yield "the output profile is none for RGB (6.2.3)"


def _file_faults(root: Any) -> Iterator[str]:
    names = list(root.get("/Names", {}).get("/EmbeddedFiles", {}).get("/Names", []))
    specs = names[1::2]
    associated = {spec.get("/UF") for spec in root.get("/AF", [])}
    if "factur-x.xml" not in {str(name) for name in names[::2]}:
        yield "there is no factur-x.xml inside"
    for spec in specs:
        name = spec.get("/UF")
        if name is None or "/F" not in spec or name not in associated:
            yield f"the file {name} is not associated with the document, or has no name (6.8)"
        if spec.get("/AFRelationship") not in _RELATIONSHIPS:
            yield f"the file {name} does not say what it is to the document (6.8)"
        stream = spec.get("/EF", {}).get("/F")
        if stream is None or "/Subtype" not in stream or "/ModDate" not in stream.get("/Params", {}):
            yield f"the file {name} has no type or no date (6.8)"


def _font_faults(font: Any) -> Iterator[str]:
    if font.get("/Subtype") != "/Type0" or "/ToUnicode" not in font:
        yield "it is no composite font with a map to Unicode (6.2.11.7)"
        return
    inner = font.DescendantFonts[0]
    program = inner.get("/FontDescriptor", {}).get("/FontFile2")
    if program is None or "/CIDToGIDMap" not in inner:
        yield "it is not embedded (6.2.11.4)"
        return
    truetype = library("fontTools.ttLib").TTFont(io.BytesIO(program.read_bytes()))
    scale = 1000 / truetype["head"].unitsPerEm
    mapping = inner.CIDToGIDMap.read_bytes()
    order = truetype.getGlyphOrder()
    for cid, width in _widths(inner.get("/W", [])):
        glyph = int.from_bytes(mapping[2 * cid : 2 * cid + 2], "big")
        if glyph and (glyph >= len(order) or abs(truetype["hmtx"][order[glyph]][0] * scale - width) > 1):
            yield f"the width of glyph {cid} is not the font's (6.2.11.5)"


def _widths(array: Any) -> Iterator[tuple[int, float]]:
    """The (CID, width) pairs of a /W array."""
    items = list(array)
    while items:
        first = int(items.pop(0))
        following = items.pop(0)
        if getattr(following, "_type_name", "") == "array":
            yield from ((first + offset, float(width)) for offset, width in enumerate(following))
        else:
            width = float(items.pop(0))
            yield from ((cid, width) for cid in range(first, int(following) + 1))
