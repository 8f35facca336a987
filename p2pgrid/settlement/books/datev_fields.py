"""The form of DATEV's Buchungsstapel: header, columns, what a field may hold.

Version 700 of the header, version 13 of the format, as DATEV's developer portal has them (docs/settlement/books.md,
section 4, says where each part was seen).
"""

from __future__ import annotations

from typing import Final

HEADER_VERSION: Final = 700
CATEGORY: Final = 21
FORMAT_NAME: Final = "Buchungsstapel"
FORMAT_VERSION: Final = 13
ENCODING: Final = "cp1252"
MAX_TEXT: Final = 60
MAX_DOCUMENT: Final = 36
MAX_UMSATZ_CENTS: Final = 10**12 - 1
"""Ten digits before the comma."""


def _pairs(kind: str, content: str, count: int) -> list[str]:
    return [text.format(n) for n in range(1, count + 1) for text in (kind, content)]


COLUMNS: Final = (
    "Umsatz (ohne Soll/Haben-Kz)",
    "Soll/Haben-Kennzeichen",
    "WKZ Umsatz",
    "Kurs",
    "Basis-Umsatz",
    "WKZ Basis-Umsatz",
    "Konto",
    "Gegenkonto (ohne BU-Schlüssel)",
    "BU-Schlüssel",
    "Belegdatum",
    "Belegfeld 1",
    "Belegfeld 2",
    "Skonto",
    "Buchungstext",
    "Postensperre",
    "Diverse Adressnummer",
    "Geschäftspartnerbank",
    "Sachverhalt",
    "Zinssperre",
    "Beleglink",
    *_pairs("Beleginfo - Art {}", "Beleginfo - Inhalt {}", 8),
    "KOST1 - Kostenstelle",
    "KOST2 - Kostenstelle",
    "Kost-Menge",
    "EU-Land u. UStID (Bestimmung)",
    "EU-Steuersatz (Bestimmung)",
    "Abw. Versteuerungsart",
    "Sachverhalt L+L",
    "Funktionsergänzung L+L",
    "BU 49 Hauptfunktionstyp",
    "BU 49 Hauptfunktionsnummer",
    "BU 49 Funktionsergänzung",
    *_pairs("Zusatzinformation - Art {}", "Zusatzinformation- Inhalt {}", 20),
    "Stück",
    "Gewicht",
    "Zahlweise",
    "Forderungsart",
    "Veranlagungsjahr",
    "Zugeordnete Fälligkeit",
    "Skontotyp",
    "Auftragsnummer",
    "Buchungstyp",
    "USt-Schlüssel (Anzahlungen)",
    "EU-Land (Anzahlungen)",
    "Sachverhalt L+L (Anzahlungen)",
    "EU-Steuersatz (Anzahlungen)",
    "Erlöskonto (Anzahlungen)",
    "Herkunft-Kz",
    "Buchungs GUID",
    "KOST-Datum",
    "SEPA-Mandatsreferenz",
    "Skontosperre",
    "Gesellschaftername",
    "Beteiligtennummer",
    "Identifikationsnummer",
    "Zeichnernummer",
    "Postensperre bis",
    "Bezeichnung SoBil-Sachverhalt",
    "Kennzeichen SoBil-Buchung",
    "Festschreibung",
    "Leistungsdatum",
    "Datum Zuord. Steuerperiode",
    "Fälligkeit",
    "Generalumkehr (GU)",
    "Steuersatz",
    "Land",
    "Abrechnungsreferenz",
    "BVV-Position",
    "EU-Land u. UStID (Ursprung)",
    "EU-Steuersatz (Ursprung)",
    "Abw. Skontokonto",
)
"""In the order of the file, 125 of them."""

_TEXT_NUMBERS: Final = frozenset(
    {2, 3, 6, 9, 11, 12, 14, 16, *range(20, 39), 40, 42, *range(48, 88)}
    | {91, 95, 96, 98, 102, 103, 105, 107, 109, 110, 112, 118, 120, 121, 123}
)
TEXT_COLUMNS: Final = frozenset(COLUMNS[number - 1] for number in _TEXT_NUMBERS)
"""Those that stand in quotes, also where they are empty."""
