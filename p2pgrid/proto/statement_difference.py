"""Two statements held side by side: what the client states, and what the provider does (docs/spec/settlement.md, 4).

Pure. Where both made theirs from the same receipts, disputes and payments they are the same bytes; where they are not,
each difference is named by the field that has it, the receipts and lines among them one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from p2pgrid.proto.statement import Statement, StatementLine, VatLine
from p2pgrid.proto.wire.settlement import MAX_DIFFERENCES, StatementDifference, StatementDiffers

_PLAIN = (
    "channel",
    "statement_number",
    "previous",
    "first_receipt",
    "last_receipt",
    "root",
    "currency",
    "total_pico",
    "credits_pico",
    "held_pico",
    "net_cents",
    "gross_cents",
    "payments_cents",
    "set_off_cents",
    "opening_cents",
    "closing_cents",
    "from_ms",
    "until_ms",
    "due_ms",
    "stated_ms",
)
"""Every field but lines and VAT, which are compared by their parts."""


def differences(client: Statement, provider: Statement) -> list[StatementDifference]:
    """What differs, in the order of the fields; lines by model and tariff, VAT by category and rate. Empty: nothing."""
    found = [
        difference(name, client=_shown(getattr(client, name)), provider=_shown(getattr(provider, name)))
        for name in _PLAIN
        if getattr(client, name) != getattr(provider, name)
    ]
    lines = _unlike(map(_line_key, client.lines), map(_line_key, provider.lines), _line)
    vat = _unlike(map(_vat_key, client.vat), map(_vat_key, provider.vat), _vat)
    found += [difference("line", about=about, client=ours, provider=theirs) for about, ours, theirs in lines]
    found += [difference("vat", about=about, client=ours, provider=theirs) for about, ours, theirs in vat]
    if not found and client != provider:
        # The same parts in another order.
        what = "vat" if client.lines == provider.lines else "line"
        found.append(difference(what, about="the order of the lines", client="by model and tariff", provider="another"))
    return found


def receipt_differences(
    client: Mapping[int, bytes], provider: Sequence[bytes], first: int
) -> list[StatementDifference]:
    """Receipts of the draft, from number `first` on, that are others on the client's side, or none. `client`: ids by
    number of what it would state."""
    return [
        difference(
            "receipt",
            about="another receipt" if number in client else "none that this side could state",
            receipt_number=number,
            client=client[number].hex() if number in client else "",
            provider=record_id.hex(),
        )
        for number, record_id in enumerate(provider, first)
        if client.get(number) != record_id
    ]


def differs(found: Sequence[StatementDifference]) -> StatementDiffers:
    """The message that says so: the first ones, where there are many."""
    return StatementDiffers(differences=tuple(found[:MAX_DIFFERENCES]), is_all=len(found) <= MAX_DIFFERENCES)


def difference(
    field: str, *, about: str = "", receipt_number: int = 0, client: str = "", provider: str = ""
) -> StatementDifference:
    """One difference, cut to what a message has room for."""
    return StatementDifference(
        field=field, about=about[:160], receipt_number=receipt_number, client=client[:160], provider=provider[:160]
    )


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _line_key(line: StatementLine) -> tuple[tuple[object, ...], StatementLine]:
    return (line.model, line.input_upm, line.cached_input_upm, line.output_upm), line


def _vat_key(line: VatLine) -> tuple[tuple[object, ...], VatLine]:
    return (line.category, line.rate_bp, line.exemption), line


def _unlike(
    client: Iterable[tuple[tuple[object, ...], object]],
    provider: Iterable[tuple[tuple[object, ...], object]],
    show: object,
) -> list[tuple[str, str, str]]:
    ours, theirs = dict(client), dict(provider)
    assert callable(show)
    return [
        (
            " ".join(map(str, key)),
            show(ours[key]) if key in ours else "none",
            show(theirs[key]) if key in theirs else "none",
        )
        for key in [*ours, *(key for key in theirs if key not in ours)]
        if ours.get(key) != theirs.get(key)
    ]


def _line(line: StatementLine) -> str:
    return (
        f"{line.receipts} receipts, {line.prompt_tokens} in ({line.cached_tokens} cached), {line.output_tokens} out, "
        f"{line.amount_pico} pico"
    )


def _vat(line: VatLine) -> str:
    return f"{line.vat_cents} cents on {line.net_cents}"
