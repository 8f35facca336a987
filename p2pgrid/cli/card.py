"""`p2pgrid card`: the operator's card. Who stands behind which keys, signed by a key that need not be on the node."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from p2pgrid.cli.card_check import check
from p2pgrid.cli.context import CliContext
from p2pgrid.data_folder import DataFolder, create_key, load_key
from p2pgrid.errors import InvalidRecord, LocalError, UsageError

if TYPE_CHECKING:
    from p2pgrid.proto.card_chain import CardChain
    from p2pgrid.proto.keys import PublicKey, SecretKey

F = TypeVar("F", bound=Callable[..., object])

DEFAULT_DAYS = 365
DEFAULT_OVERLAP_DAYS = 90
_DAY_MS = 86_400_000


def operator_key_option(command: F) -> F:
    """Add `--operator-key`."""
    return click.option(
        "--operator-key",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The operator's key file. [default: operator-key in the data folder]",
    )(command)


def days_option(command: F) -> F:
    """Add `--days`."""
    days = click.IntRange(1, 3660)
    return click.option("--days", type=days, default=DEFAULT_DAYS, show_default=True, help="How long it holds.")(
        command
    )


def fields_options(command: F) -> F:
    """Add the options for what a card says of the operator."""
    for name, metavar, text in (
        ("--domain", "NAME", "A DNS name that you control, like compute.example."),
        ("--parent-country", "CC", "Where your ultimate parent has its seat. [default: your own country]"),
        ("--country", "CC", "Where you are established, ISO 3166-1 alpha-2. [default: config.toml's]"),
        ("--vat-id", "ID", "Your VAT id, with its country's letters."),
        ("--legal-name", "NAME", "Your name in law. [default: config.toml's operator]"),
    ):
        command = click.option(name, metavar=metavar, help=text)(command)
    return command


@click.group()
def card() -> None:
    """Say who stands behind your nodes' keys, and check others.

    A card is signed by an operator key, which may stay on another machine: sign there, and copy card.jsonl to each
    node's data folder. A running node shows a new card within seconds.
    """


card.add_command(check)


@card.command("init")
@fields_options
@click.option(
    "--days", type=click.IntRange(1, 3660), default=DEFAULT_DAYS, show_default=True, help="How long it holds."
)
@operator_key_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def init(
    context: CliContext,
    legal_name: str | None,
    vat_id: str | None,
    country: str | None,
    parent_country: str | None,
    domain: str | None,
    days: int,
    operator_key: Path | None,
    as_json: bool,
) -> None:
    """Make the operator's key, if there is none, and sign the first card.

    The card names this node's own key, where the data folder has one.
    """
    from p2pgrid.proto.card_signing import first_card, with_peer

    data = context.data
    if data.card_file.exists():
        raise UsageError(f"there is a card already: {data.card_file}.", hint="`p2pgrid card sign` signs the next one.")
    provider = data.load_config().provider
    chosen = _checked_fields(legal_name, vat_id, country or provider.country, parent_country, domain)
    chosen.setdefault("legal_name", provider.operator)
    if not chosen["legal_name"]:
        raise UsageError("the card needs a name.", hint="Give --legal-name, or set operator in config.toml.")
    chosen = {"vat_id": "", "domain": "", "parent_country": chosen["country"], **chosen}
    data.make()
    key_file = operator_key or data.operator_key_file
    if not key_file.exists():
        create_key(key_file)
    now_ms, until_ms = _now_ms(), _now_ms() + days * _DAY_MS
    peers = with_peer((), data.load_key().public_key.raw, until_ms, now_ms) if data.key_file.exists() else ()
    signed = _signing(
        lambda: first_card(load_key(key_file), now_ms=now_ms, valid_until_ms=until_ms, peers=peers, **chosen)
    )
    _keep(data, (signed,), as_json, f"The operator's key is {key_file}: back it up, and keep it to yourself.")


@card.command("sign")
@click.option(
    "--peer", "peers", multiple=True, metavar="PEER", help="A node's peer id; may be repeated. [default: own]"
)
@click.option("--until", metavar="DATE", help="How long these peers act for you, like 2027-12-31. [default: --days]")
@fields_options
@click.option(
    "--days", type=click.IntRange(1, 3660), default=DEFAULT_DAYS, show_default=True, help="How long it holds."
)
@operator_key_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def sign(
    context: CliContext,
    peers: tuple[str, ...],
    until: str | None,
    legal_name: str | None,
    vat_id: str | None,
    country: str | None,
    parent_country: str | None,
    domain: str | None,
    days: int,
    operator_key: Path | None,
    as_json: bool,
) -> None:
    """Sign the next card: add or renew peers, and change what is given.

    All else stays as it was. Without --peer, this node's own key is added or renewed.
    """
    from p2pgrid.proto.card_signing import next_card, with_peer

    data = context.data
    chain = _chain(data)
    last = chain[-1].message
    changes = _checked_fields(legal_name, vat_id, country, parent_country, domain, of_country=last.country)
    now_ms = _now_ms()
    until_ms = _parse_date(until) if until else now_ms + days * _DAY_MS
    if until_ms <= now_ms:
        raise UsageError(f"{until} is over already.", hint="To end a key now: p2pgrid card revoke PEER --reason TEXT.")
    named = [_peer_key(text) for text in peers]
    if not named and data.key_file.exists():
        named = [data.load_key().public_key]
    known = last.peers
    for peer in named:
        known = with_peer(known, peer.raw, until_ms, now_ms)
    valid_until_ms = max(now_ms + days * _DAY_MS, last.valid_until_ms)
    key = _operator_key(data, operator_key, chain)
    signed = _signing(
        lambda: next_card(chain, key, now_ms=now_ms, valid_until_ms=valid_until_ms, peers=known, **changes)
    )
    _keep(data, (*chain, signed), as_json)


@card.command("revoke")
@click.argument("peer")
@click.option("--reason", required=True, metavar="TEXT", help="Why, for everybody to read.")
@click.option(
    "--since", metavar="TIME", help="From when on, like 2027-05-01T12:00. What was signed before stands. [now]"
)
@operator_key_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def revoke(
    context: CliContext, peer: str, reason: str, since: str | None, operator_key: Path | None, as_json: bool
) -> None:
    """Say that a node's key acts for you no more: it was lost, stolen or sold.

    A revocation is never taken back. Clients that see the card buy from that key no more.
    """
    from p2pgrid.proto.card_signing import next_card, with_revocation

    data = context.data
    chain, lost = _chain(data), _peer_key(peer)
    since_ms = _parse_date(since) if since else _now_ms()
    for one in chain[-1].message.revoked:
        if one.key == lost.raw and one.since_ms <= since_ms:
            raise UsageError(f"{lost} is revoked already, since {_day(one.since_ms)}: {one.reason}")
    revoked = with_revocation(chain[-1].message.revoked, lost.raw, since_ms, reason)
    key = _operator_key(data, operator_key, chain)
    signed = _signing(lambda: next_card(chain, key, now_ms=_now_ms(), revoked=revoked))
    _keep(data, (*chain, signed), as_json, "Put the new file on your web server too: `p2pgrid card well-known`.")


@card.command("rotate")
@click.option(
    "--overlap-days",
    type=click.IntRange(1, 3660),
    default=DEFAULT_OVERLAP_DAYS,
    show_default=True,
    help="How long the old key may still end what was begun under it.",
)
@operator_key_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def rotate(context: CliContext, overlap_days: int, operator_key: Path | None, as_json: bool) -> None:
    """Give this node a new key, and sign a card that names both.

    The old key file is kept: the node still resumes what clients began under it, and their new channels name its last
    receipts. Restart the node to use the new key. Where the operator's key is on another machine, this says what to
    sign there; run it again when the new card is here.
    """
    from p2pgrid.proto.card_chain import key_term
    from p2pgrid.proto.card_signing import next_card, with_peer

    data = context.data
    chain, old = _chain(data), data.load_key().public_key
    draft = data.path / "key.new"
    if not draft.exists():
        create_key(draft)
    new = load_key(draft).public_key
    now_ms = _now_ms()
    end_ms = now_ms + overlap_days * _DAY_MS
    key_file = operator_key or data.operator_key_file
    if key_file.exists():
        until_ms = max(now_ms + DEFAULT_DAYS * _DAY_MS, chain[-1].message.valid_until_ms)
        peers = with_peer(with_peer(chain[-1].message.peers, old.raw, end_ms, now_ms), new.raw, until_ms, now_ms)
        key = _operator_key(data, operator_key, chain)
        signed = _signing(lambda: next_card(chain, key, now_ms=now_ms, valid_until_ms=until_ms, peers=peers))
        chain = (*chain, signed)
        _write(data, chain)
    elif key_term(chain, new.raw) is None or key_term(chain, old.raw) is None:
        end = datetime.fromtimestamp(end_ms / 1000, UTC).strftime("%Y-%m-%d")
        raise UsageError(
            f"the operator's key is not here ({key_file}), and the card does not name the new key yet.",
            hint=f"Where it is, run `p2pgrid card sign --peer {new.peer_id}` and `p2pgrid card sign --peer "
            f"{old.peer_id} --until {end}`; copy card.jsonl here; then run this again.",
        )
    _exchange_keys(data, draft, old)
    _report(
        data,
        chain,
        as_json,
        f"This node is {new.peer_id} now; it was {old.peer_id}. Restart it, and update your web server's file.",
    )


@card.command("successor")
@click.argument("peer", required=False)
@operator_key_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def successor(context: CliContext, peer: str | None, operator_key: Path | None, as_json: bool) -> None:
    """Name the operator key that may sign the next cards in place of this one.

    PEER is that key's id; left out, a new key is made: operator-key.successor in the data folder. Keep it apart.
    """
    from p2pgrid.proto.card_signing import next_card

    data, chain = context.data, _chain(context.data)
    note = ""
    if peer is None:
        file = data.path / "operator-key.successor"
        if not file.exists():
            create_key(file)
        following = load_key(file).public_key
        note = f"The successor's key is {file}: take it elsewhere. It signs with --operator-key."
    else:
        following = _peer_key(peer)
    key = _operator_key(data, operator_key, chain)
    signed = _signing(lambda: next_card(chain, key, now_ms=_now_ms(), successor=following.raw))
    _keep(data, (*chain, signed), as_json, note)


@card.command("show")
@click.argument("peer", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def show(context: CliContext, peer: str | None, as_json: bool) -> None:
    """Show your own card, or the one that a provider you bought from has shown you.

    Nothing is asked of anybody: `p2pgrid card check` does that.
    """
    data = context.data
    if peer is None:
        _report(data, _chain(data), as_json)
        return
    from p2pgrid.ledger.card_file import read_cards

    chain = read_cards(data.cards_folder / f"{_peer_key(peer).peer_id}.jsonl")
    if not chain:
        raise UsageError(f"no card of {peer} is kept here.", hint="`p2pgrid card check` asks for it.")
    _report(data, chain, as_json)


@card.command("well-known")
@click.option("--json", "as_json", is_flag=True, help="The same: the file is JSON.")
@click.pass_obj
def well_known(context: CliContext, as_json: bool) -> None:
    """Print the file for your web server, /.well-known/p2pgrid.json.

    It names the peers that are yours now: whoever reads it over HTTPS knows that the domain stands behind them.
    """
    from p2pgrid.proto.well_known import well_known_of

    click.echo(json.dumps(well_known_of(_chain(context.data), _now_ms()), indent=None if as_json else 1))


# -- what the commands share -----------------------------------------------------------------------------------------


def _now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


def _chain(data: DataFolder) -> CardChain:
    from p2pgrid.ledger.card_file import read_cards

    chain = read_cards(data.card_file)
    if not chain:
        raise UsageError(f"there is no card at {data.card_file}.", hint="`p2pgrid card init` signs the first one.")
    return chain


def _operator_key(data: DataFolder, given: Path | None, chain: CardChain) -> SecretKey:
    file = given or data.operator_key_file
    if not file.exists():
        raise UsageError(
            f"the operator's key is not at {file}.", hint="Name it with --operator-key, or sign where it is."
        )
    return load_key(file)


def _checked_fields(
    legal_name: str | None,
    vat_id: str | None,
    country: str | None,
    parent_country: str | None,
    domain: str | None,
    *,
    of_country: str = "",
) -> dict[str, Any]:
    """What was given, in the form that a card has it. Raises UsageError."""
    from p2pgrid.cli.vat_id import parse_vat_id
    from p2pgrid.proto.card import is_domain

    fields: dict[str, Any] = {}
    for name, code in (("country", country), ("parent_country", parent_country)):
        if code is not None:
            if len(code) != 2 or not code.isascii() or not code.isalpha():
                raise UsageError(f"{code!r} is no country code.", hint="Use two letters of ISO 3166-1, like DE or FR.")
            fields[name] = code.upper()
    if legal_name is not None:
        fields["legal_name"] = legal_name.strip()
    if vat_id is not None:
        fields["vat_id"] = parse_vat_id(vat_id, fields.get("country", of_country))
    if domain is not None:
        fields["domain"] = domain.strip().lower().rstrip(".")
        if fields["domain"] and not is_domain(fields["domain"]):
            raise UsageError(f"{domain!r} is no DNS name.", hint="Write it like compute.example, without https://.")
    return fields


def _parse_date(text: str) -> int:
    """A date (its end, UTC) or a time, in Unix milliseconds. Raises UsageError."""
    try:
        moment = datetime.fromisoformat(text)
        if len(text) == len("2027-12-31"):
            moment += timedelta(days=1)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text[:40]!r} is no date that can be meant.", hint="Write it like 2027-12-31 or 2027-05-01T12:00."
        ) from None


def _peer_key(text: str) -> PublicKey:
    from p2pgrid.proto.keys import parse_peer_id

    try:
        return parse_peer_id(text)
    except InvalidRecord as error:
        raise UsageError(error.message, hint="Peer ids begin with 12D3KooW.") from None


T = TypeVar("T")


def _signing(sign_it: Callable[[], T]) -> T:
    try:
        return sign_it()
    except InvalidRecord as error:
        raise UsageError(f"the card cannot be signed: {error.message}", hint="Give other values.") from None


def _exchange_keys(data: DataFolder, draft: Path, old: PublicKey) -> None:
    """The new key in the place of the old one, which stays beside it. A crash leaves one or the other there."""
    kept = data.path / f"key.{old.peer_id}"
    try:
        if not kept.exists():
            os.link(data.key_file, kept)
        draft.replace(data.key_file)
    except OSError as error:
        raise LocalError(f"the key cannot be exchanged: {error.strerror}.", hint="Mend that, and try again.") from None


def _write(data: DataFolder, chain: CardChain) -> None:
    from p2pgrid.ledger.card_file import write_cards
    from p2pgrid.proto.card_chain import verify_chain

    write_cards(data.card_file, verify_chain(card.record for card in chain))


def _keep(data: DataFolder, chain: CardChain, as_json: bool, note: str = "") -> None:
    _write(data, chain)
    _report(data, chain, as_json, note)


def card_object(chain: CardChain) -> dict[str, Any]:
    """A chain's last card, for programs."""
    from p2pgrid.proto.card_chain import key_state
    from p2pgrid.proto.keys import parse_public_key

    signed, now_ms = chain[-1], _now_ms()
    message = signed.message
    return {
        "id": signed.id.hex(),
        "operator": parse_public_key(message.operator).peer_id,
        "sequence": message.sequence,
        "valid_from_ms": message.valid_from_ms,
        "valid_until_ms": message.valid_until_ms,
        "legal_name": message.legal_name,
        "vat_id": message.vat_id,
        "country": message.country,
        "parent_country": message.parent_country,
        "domain": message.domain,
        "peers": [
            {
                "peer": parse_public_key(peer.key).peer_id,
                "valid_from_ms": peer.valid_from_ms,
                "valid_until_ms": peer.valid_until_ms,
                "state": key_state(chain, peer.key, now_ms).value,
            }
            for peer in message.peers
        ],
        "revoked": [
            {"peer": parse_public_key(one.key).peer_id, "since_ms": one.since_ms, "reason": one.reason}
            for one in message.revoked
        ],
        "successor": parse_public_key(message.successor).peer_id if message.successor else None,
        "chain": [card.id.hex() for card in chain],
    }


def _report(data: DataFolder, chain: CardChain, as_json: bool, note: str = "") -> None:
    shown = card_object(chain)
    if as_json:
        click.echo(json.dumps({**shown, "file": str(data.card_file), "note": note}))
        return
    lines = [
        f"Card {shown['sequence']} of {shown['legal_name']}",
        f"  operator   {shown['operator']}",
        f"  VAT id     {shown['vat_id'] or '(none)'}",
        f"  country    {shown['country']}, ultimate parent in {shown['parent_country']}",
        f"  domain     {shown['domain'] or '(none)'}",
        f"  valid      {_day(shown['valid_from_ms'])} to {_last_day(shown['valid_until_ms'])}",
        *(
            f"  peer       {peer['peer']} until {_last_day(peer['valid_until_ms'])} ({peer['state']})"
            for peer in shown["peers"]
        ),
        *(f"  revoked    {one['peer']} since {_day(one['since_ms'])}: {one['reason']}" for one in shown["revoked"]),
        *([f"  successor  {shown['successor']}"] if shown["successor"] else []),
        *([note] if note else []),
    ]
    click.echo("\n".join(lines))


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d")


def _last_day(until_ms: int) -> str:
    """The day that a term reaches into: one that ends at midnight does not hold on the day that begins then."""
    return _day(until_ms - 1)
