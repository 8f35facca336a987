"""`p2pgrid billing`: who you are on invoices, where money goes, and what peers say of themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from p2pgrid.cli.config_template import EXPLAINED
from p2pgrid.cli.context import CliContext
from p2pgrid.cli.output import echo_json
from p2pgrid.config import BillingConfig
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import LocalError, UsageError
from p2pgrid.printable import printable

if TYPE_CHECKING:
    from p2pgrid.proto.billing_details import BillingDetails
    from p2pgrid.settlement.billing import FieldFault

_JUDGED_BY = {"country": "vat-id", "electronic-scheme": "electronic-address"}
"""Settings by which another one is right or wrong."""

F = TypeVar("F", bound=Callable[..., object])


@click.group()
def billing() -> None:
    """Say who you are on invoices, and check what peers say of themselves.

    \b
    p2pgrid billing set --legal-name "Zaibas UAB" --street "Gedimino pr. 1" --city Vilnius --post-code 01103 \\
        --country LT --vat-id LT100001738313 --iban LT121000011101001000
    p2pgrid billing check

    Names, addresses and accounts go to the other side of each channel, signed, and to nobody else: no export, log or
    audit has them.
    """


def _field_options(command: F) -> F:
    """An option for each setting of [billing]."""
    for field in reversed(msgspec.structs.fields(BillingConfig)):
        if field.encode_name not in EXPLAINED[BillingConfig]:
            continue  # a table of its own
        flag, text = f"--{field.encode_name}", EXPLAINED[BillingConfig][field.encode_name]
        if field.type is bool:
            command = click.option(f"{flag}/--no-{field.encode_name}", default=None, help=text)(command)
        elif field.encode_name == "payment-days":
            command = click.option(flag, type=click.IntRange(0, 366), default=None, help=text)(command)
        else:
            command = click.option(flag, metavar="TEXT", default=None, help=text)(command)
    return command


@billing.command("set")
@_field_options
@click.option("--json", "as_json", is_flag=True, help="Print what `show --json` prints.")
@click.pass_obj
def set_billing(context: CliContext, /, as_json: bool, **given: str | int | bool | None) -> None:
    """Write settings into [billing] of config.toml; what is not named stays.

    \b
    p2pgrid billing set --iban LT121000011101001000 --payment-days 30

    Nothing is written if a value is wrong. A running node reads them when it next needs them.
    """
    from p2pgrid.cli.config_edit import read_text, set_in_file, with_settings
    from p2pgrid.config import parse_config

    chosen = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
    if not chosen:
        raise UsageError("nothing to set was given.", hint="Try: p2pgrid billing set --help")
    path = context.data.config_file
    draft = parse_config(with_settings(read_text(path), "billing", chosen), "config.toml as it would be").billing
    touched = {*chosen, *(_JUDGED_BY[name] for name in chosen if name in _JUDGED_BY)}
    wrong = [fault for fault in _faults(_details(context.data, draft)) if fault.field in touched]
    if wrong:
        raise UsageError(
            " ".join(f"{fault}" for fault in wrong),
            hint="Nothing was written. What depends on one another is set at once.",
        )
    context.data.make()
    set_in_file(path, "billing", chosen)
    _show(context.data, as_json=as_json)


@billing.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def show(context: CliContext, as_json: bool) -> None:
    """Show what is set, and what is missing for what.

    \b
    p2pgrid billing show
    """
    _show(context.data, as_json=as_json)


@billing.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def check(click_context: click.Context, as_json: bool) -> None:
    """Check IBAN, BIC, VAT id and all else; and that they agree with the card, if there is one.

    \b
    p2pgrid billing check

    Exit code 1 if anything is wrong. Whether a VAT id is in use is not asked of anybody: VIES tells it.
    """
    data: DataFolder = click_context.obj.data
    details = _details(data, data.load_config().billing)
    faults = [*_faults(details), *_card_faults(data, details)]
    if as_json:
        echo_json({"ok": not faults, "faults": _as_json(faults)})
    else:
        for fault in faults:
            click.echo(str(fault))
        if not faults:
            click.echo("Nothing is wrong with what is set. `p2pgrid billing show` says what is missing.")
    click_context.exit(1 if faults else 0)


@billing.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def peers(context: CliContext, as_json: bool) -> None:
    """Show what peers say of themselves, and whose account has changed.

    \b
    p2pgrid billing peers
    """
    from p2pgrid.cli.account_changes import changes_json, print_changes, unconfirmed
    from p2pgrid.proto.keys import parse_public_key
    from p2pgrid.settlement.database import FILE_NAME, open_database
    from p2pgrid.settlement.details import DetailsBook

    with closing(open_database(_existing(context.data) / FILE_NAME)) as connection:
        book = DetailsBook(connection)
        known, changes = book.peers(), unconfirmed(book)
    if as_json:
        shown = {
            "peers": [{"peer": parse_public_key(s.message.party).peer_id, **_public(s.message)} for s in known],
            "account_changes": changes_json(changes),
        }
        echo_json(shown)
        return
    if not known:
        click.echo("No peer has said who it is yet.")
    for signed in known:
        d = signed.message
        peer = parse_public_key(d.party).peer_id
        click.echo(f"{printable(d.legal_name)}, {d.country}, {d.vat_id or 'no VAT id'} ({d.by}, {peer})")
        click.echo(f"  {d.iban or 'no account'}")
    print_changes(changes)


@billing.command()
@click.argument("peer")
@click.argument("iban")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def confirm(context: CliContext, peer: str, iban: str, as_json: bool) -> None:
    """Say that a peer's new account is really the peer's: you have asked them, on a way that you know of old.

    \b
    p2pgrid billing confirm 12D3KooW... DE89370400440532013000
    """
    from p2pgrid.cli.asking import parse_peer
    from p2pgrid.proto.keys import parse_peer_id
    from p2pgrid.proto.record import PARTIES
    from p2pgrid.settlement.database import FILE_NAME, open_database
    from p2pgrid.settlement.details import DetailsBook
    from p2pgrid.settlement.payments.accounts import checked_iban

    key, account = parse_peer_id(parse_peer(peer)), checked_iban(iban)
    with closing(open_database(_existing(context.data) / FILE_NAME)) as connection:
        book = DetailsBook(connection)
        done = [book.confirm_account(key.raw, role, account) for role in PARTIES]
    if not any(done):
        raise UsageError(
            f"{peer} has no changed account {account} that waits to be confirmed.",
            hint="`p2pgrid billing peers` shows what has changed.",
        )
    click.echo(json.dumps({"peer": key.peer_id, "iban": account, "confirmed": True}) if as_json else "Confirmed.")


def _show(data: DataFolder, *, as_json: bool) -> None:
    from p2pgrid.settlement.billing import Purpose, advice_for, missing_for

    settings = data.load_config().billing
    details = _details(data, settings)
    missing = {purpose.value: missing_for(details, purpose) for purpose in Purpose}
    advice = {purpose.value: advice_for(details, purpose) for purpose in Purpose}
    faults, not_checked = None, ""
    try:
        faults = _faults(details)
    except LocalError as error:
        not_checked = f"Not checked: {error.message} {error.hint}"
    if as_json:
        shown = {
            "billing": {name.replace("-", "_"): value for name, value in shown_of(settings).items()},
            "missing": {key.replace("-", "_"): value for key, value in missing.items()},
            "advice": {key.replace("-", "_"): value for key, value in advice.items()},
            "faults": None if faults is None else _as_json(faults),
        }
        echo_json(shown)
        return
    for name, value in shown_of(settings).items():
        if value != "":
            click.echo(f"{name:<22}{value}")
    for line in [f"Wrong: {fault}" for fault in faults or ()] + [not_checked] * bool(not_checked):
        click.echo(click.style(line, fg="red"))
    words = {"issue": "To issue invoices", "be-invoiced": "To be invoiced", "pay": "To pay"}
    for purpose, fields in missing.items():
        click.echo(f"{words[purpose]}: {'missing ' + ', '.join(fields) if fields else 'nothing is missing'}.")
        for sentence in advice[purpose]:
            click.echo(f"  Note: {sentence}")


def shown_of(settings: BillingConfig) -> dict[str, Any]:
    """The settings as the file has them, without those of accounting (`p2pgrid books`)."""
    return {name: value for name, value in msgspec.to_builtins(settings).items() if name in EXPLAINED[BillingConfig]}


def _details(data: DataFolder, settings: BillingConfig) -> BillingDetails:
    """As they would be signed; by a stand-in where there is no key yet."""
    from p2pgrid.proto.keys import SecretKey
    from p2pgrid.proto.record import Role
    from p2pgrid.settlement.billing import draft_details

    key = data.load_key() if data.key_file.exists() else SecretKey(bytes(32))
    return draft_details(settings, party=key.public_key, by=Role.PROVIDER)


def _faults(details: BillingDetails) -> list[FieldFault]:
    from p2pgrid.settlement.billing import faults_of

    return faults_of(details)


def _as_json(faults: list[FieldFault]) -> list[dict[str, str]]:
    return [{"field": fault.field, "value": fault.value, "expected": fault.expected} for fault in faults]


def _card_faults(data: DataFolder, details: BillingDetails) -> list[FieldFault]:
    from p2pgrid.ledger.card_file import read_cards
    from p2pgrid.settlement.billing import FieldFault, faults_against_card

    chain = read_cards(data.card_file)
    if not chain:
        return []
    card = chain[-1].message
    faults = faults_against_card(details, card)
    prefix = data.load_config().billing.invoice_prefix
    if len(card.peers) > 1 and prefix == BillingConfig().invoice_prefix:
        faults.append(
            FieldFault(
                "invoice-prefix", prefix, f"the card names {len(card.peers)} nodes: each needs a prefix of its own."
            )
        )
    return faults


def _public(details: BillingDetails) -> dict[str, Any]:
    names = ("by", "sequence", "stated_ms", "legal_name", "street", "city", "post_code", "country", "vat_id", "iban")
    return {name: getattr(details, name) for name in names}


def _existing(data: DataFolder) -> Path:
    data.make()
    return data.path
