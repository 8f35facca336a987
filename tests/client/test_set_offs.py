"""A set-off proposed on one side and accepted on the other, over a real link: each hears of it at once."""

from __future__ import annotations

from typing import Any

from p2pgrid.client.desk import ClientDesk
from p2pgrid.clock import unix_ms
from p2pgrid.desk.asks import KeepSetOffs
from p2pgrid.desk.records_desk import RecordsDesk
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.keys import SecretKey
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.set_off import SetOff
from p2pgrid.proto.set_off_rules import is_in_force
from p2pgrid.proto.statement import Invoice
from p2pgrid.provider.desk import ProviderDesk
from p2pgrid.settlement.wiring import Buying, Selling
from tests.client.test_disputes import session
from tests.client.test_statements import CentIssuer, Deal, clean, deal
from tests.factories import CLIENT, PROVIDER, make_channel, make_set_off, set_off_side
from tests.provider.rig import until
from tests.settlement.set_off.rig import lines_of
from tests.settlement.statements.parts import Receiver, own_details


def desk(ledger: MemoryLedger, key: SecretKey) -> RecordsDesk:
    async def no_salts(_: Any) -> int:
        return 0

    return RecordsDesk(ledger, [key], unix_ms, erase_salts=no_salts)


def seller(d: Deal) -> ProviderDesk:
    records = desk(d.sold, PROVIDER)
    return ProviderDesk(d.sold, PROVIDER.public_key, lambda _: True, records, statements=d.rig.shop.statements)


def set_offs(ledger: MemoryLedger) -> list[Signed[SetOff]]:
    (channel,) = ledger.channels()
    return ledger.settlement(SetOff, channel.message.channel)


async def test_each_side_hears_of_it_at_once_and_the_next_statement_counts_it() -> None:
    sold = MemoryLedger()
    issuer = CentIssuer(sold)
    selling = Selling(details=own_details(Role.PROVIDER), hooks=issuer)
    settles_with = Buying(details=own_details(Role.CLIENT), hooks=Receiver())
    async with deal(2, sold=sold, selling=selling, settles_with=settles_with, price_output_eur="2000") as d:
        await d.settle()
        (channel,) = d.bought.channels()
        await until(lambda: d.bought.settlement(Invoice, channel.message.channel))
        (statement,) = d.statements()
        (invoice,) = d.sold.settlement(Invoice, channel.message.channel)
        # What the client's operator sells the other is on other ledgers, in a channel of its own.
        back = make_channel(CLIENT, PROVIDER, name="back", opened_ms=unix_ms())
        cents = statement.message.gross_cents
        sides = set_off_side(channel, (invoice, cents)), set_off_side(back, (invoice, cents))
        half = make_set_off(*sides, [PROVIDER], agreed_ms=unix_ms())
        await seller(d).perform(KeepSetOffs(lines=lines_of([half])))
        await until(lambda: set_offs(d.bought))
        assert not is_in_force(set_offs(d.bought)[0])

        both = make_set_off(*sides, [PROVIDER, CLIENT], agreed_ms=half.message.agreed_ms)
        buyer = ClientDesk(d.purchaser, CLIENT.public_key, desk(d.bought, CLIENT))
        await buyer.perform(KeepSetOffs(lines=lines_of([both])))
        await until(lambda: is_in_force(set_offs(d.sold)[0]))
        assert not session(d.purchaser).quarantine

        await d.settle()
        last = d.statements()[-1].message
        assert (last.set_off_cents, last.closing_cents) == (cents, last.gross_cents)
        assert clean(d.bought, d.sold)
