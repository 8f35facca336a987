"""Statements between a purchaser and a provider over real links: both sign the same, or name what differs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from p2pgrid.client.purchaser import Purchaser
from p2pgrid.client.statement_exchange import ChannelSettled, StatementClient
from p2pgrid.clock import unix_ms
from p2pgrid.errors import LedgerError, ProtocolViolation, Refused, RemoteError
from p2pgrid.ledger.base import Ledger
from p2pgrid.ledger.memory import MemoryLedger
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.keys import parse_public_key
from p2pgrid.proto.messages import Channel
from p2pgrid.proto.record import PARTIES, Role, Signed, sign_message
from p2pgrid.proto.settle_check import check_taken
from p2pgrid.proto.settle_exchange import BEGIN, END
from p2pgrid.proto.statement import Invoice, Payment, Statement
from p2pgrid.proto.verdict import audit_records
from p2pgrid.proto.wire.base import MAX_COMPARED, Refusal, parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.settlement import MAX_DOCUMENT_BYTES, DocumentRequest, SettlementHeld, StatementRequest
from p2pgrid.provider.statement_book import MOST_ASKED_FOR, StatementBook
from p2pgrid.provider.statements import StatementExchange
from p2pgrid.settlement.hooks import InvoiceFile
from p2pgrid.settlement.statements.agreed import AgreedInMemory
from p2pgrid.settlement.statements.days import LocalDays
from p2pgrid.settlement.statements.drafting import Terms
from p2pgrid.settlement.statements.refused import NotStated
from p2pgrid.settlement.wiring import Buying, Selling
from tests.client.test_disputes import buy, dispute_of, session
from tests.client.test_with_provider import buying
from tests.factories import PROVIDER, digest, make_prepayment, secret_key
from tests.provider.rig import Buyer, Rig, provider, until
from tests.settlement.statements.parts import DictDetails, Issuer, Receiver, details_of, own_details
from tests.settlement.statements.two_sides import Sides, later


@dataclass
class Deal:
    """Both sides of one channel."""

    rig: Rig
    purchaser: Purchaser
    bought: MemoryLedger
    sold: MemoryLedger
    issuer: Issuer
    receiver: Receiver

    async def settle(self, *, is_wanted: bool = True, until_day: int = 0) -> ChannelSettled:
        (channel,) = self.bought.channels()
        link = await session(self.purchaser).ready(5.0)
        done: ChannelSettled = await session(self.purchaser).statements.settle(
            link, channel, is_wanted=is_wanted, until_day=until_day
        )
        return done

    def statements(self) -> list[Signed[Statement]]:
        (channel,) = self.bought.channels()
        ours, theirs = (one.settlement(Statement, channel.message.channel) for one in (self.bought, self.sold))
        assert [one.id for one in ours] == [one.id for one in theirs]
        assert all(set(one.signers) == set(PARTIES) for one in (*ours, *theirs))
        return ours


@contextlib.asynccontextmanager
async def deal(
    receipts: int = 1,
    *,
    bought: MemoryLedger | None = None,
    sold: MemoryLedger | None = None,
    selling: Selling | None = None,
    settles_with: Buying | None = None,
    price_output_eur: str = "0.80",
) -> AsyncIterator[Deal]:
    bought, sold = bought or MemoryLedger(), sold or MemoryLedger()
    issuer, receiver = Issuer(sold), Receiver()
    selling = selling or Selling(details=own_details(Role.PROVIDER), hooks=issuer)
    settles_with = settles_with or Buying(details=own_details(Role.CLIENT), hooks=receiver)
    async with (
        provider(sold, selling=selling, price_output_eur=price_output_eur) as rig,
        buying(rig, bought, settles_with=settles_with) as (purchaser, _),
    ):
        for _ in range(receipts):
            await buy(purchaser, bought, sold)
        yield Deal(rig, purchaser, bought, sold, issuer, receiver)


@contextlib.contextmanager
def clocks_ahead(days: float) -> Iterator[None]:
    """Both sides' clocks, for what is made within."""
    ahead_ms = int(days * 86_400_000)

    def later_ms() -> int:
        return unix_ms() + ahead_ms

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("p2pgrid.client.purchaser.unix_ms", later_ms)
        patched.setattr("tests.provider.rig.unix_ms", later_ms)
        patched.setattr("tests.client.test_with_provider.unix_ms", later_ms)
        yield


def clean(bought: Ledger, sold: Ledger) -> bool:
    sides = ((bought, Role.CLIENT), (sold, Role.PROVIDER))
    verdict = audit_records(
        (Bundle(side, enumerate(ledger.records(), 1), side) for ledger, side in sides), now_ms=unix_ms()
    )
    assert not verdict.findings, verdict.findings
    return True


async def test_both_sign_the_same_and_the_invoice_comes_over() -> None:
    async with deal(3) as d:
        done = await d.settle()
        assert not done.differences and done.nothing is not None and done.nothing.code == "stated-already"
        (signed,) = d.statements()
        assert (signed.message.first_receipt, signed.message.last_receipt) == (1, 3)
        assert signed.message.total_pico == d.bought.head(signed.message.channel).total_pico
        assert [one.id for one in d.receiver.stated] == [signed.id]
        await until(lambda: [one.id for one in d.issuer.stated] == [signed.id])
        assert clean(d.bought, d.sold)


async def test_what_is_not_due_is_not_stated_and_what_nothing_is_of_is_not_on_request_either() -> None:
    async with deal(1) as d:
        done = await d.settle(is_wanted=False)
        assert done.nothing is not None and done.nothing.code == "not-due"
        await d.settle()
        for is_wanted in (False, True):
            done = await d.settle(is_wanted=is_wanted)
            assert done.nothing is not None and done.nothing.code == "nothing-happened"
            assert "since statement 1" in done.nothing.message
        # Nor if the operator wishes: what it wished is forgotten, and does not wait for the next receipt.
        (channel,) = d.bought.channels()
        d.rig.shop.statements.want(channel.message.channel, 0)
        await until(lambda: not d.rig.shop.statements._wanted)
        assert len(d.statements()) == 1
        await buy(d.purchaser, d.bought, d.sold)
        await d.settle()
        first, second = d.statements()
        assert (second.message.first_receipt, second.message.last_receipt) == (2, 2)
        assert second.message.from_ms == first.message.until_ms
        assert clean(d.bought, d.sold)


async def test_a_channel_in_which_nothing_happened_has_no_first_statement() -> None:
    sides = Sides()
    await sides.begin()
    for is_wanted in (True, False):
        with pytest.raises(NotStated) as nothing:
            await sides.settle(is_wanted=is_wanted)
        assert nothing.value.code == "nothing-happened" and "since the channel was opened" in nothing.value.message
    later(sides, 40)
    await sides.buy(signed=False)
    with pytest.raises(NotStated, match="nothing to state, and receipt 1 is neither signed by both nor disputed"):
        await sides.settle()


async def test_a_statement_that_is_due_and_signed_by_the_way_is_shown_too() -> None:
    bought, sold = MemoryLedger(), MemoryLedger()
    async with deal(2, bought=bought, sold=sold):
        pass
    with clocks_ahead(31):
        async with deal(0, bought=bought, sold=sold) as d:
            sessions = d.purchaser.sessions
            # The link is not there yet: whoever makes it signs what is due before the command has its turn.
            ((_, done),), _ = await sessions.settle(PROVIDER.public_key, "", 0)
            assert [one.message.statement_number for one in done.statements] == [1]
            assert [one.id for one in done.statements] == [one.id for one in d.statements()]
            await buy(d.purchaser, bought, sold)
            ((_, done),), _ = await sessions.settle(PROVIDER.public_key, "", 0)
            assert [one.message.statement_number for one in done.statements] == [2]
            ((_, done),), _ = await sessions.settle(PROVIDER.public_key, "", 0)
            assert not done.statements and done.nothing is not None and done.nothing.code == "nothing-happened"


async def test_a_dispute_made_just_now_is_exchanged_first() -> None:
    async with deal(2) as d:
        dispute = dispute_of(d.bought, 1)
        await d.bought.append(dispute)
        await d.settle()
        (signed,) = d.statements()
        assert signed.message.held_pico == signed.message.lines[0].amount_pico // 2
        assert clean(d.bought, d.sold)


async def test_what_the_provider_books_and_issues_reaches_the_client() -> None:
    async with deal(0) as d:
        for _ in range(2):
            await buy(d.purchaser, d.bought, d.sold, tokens=64)
        (channel,) = d.bought.channels()
        channel_id = channel.message.channel
        payment = make_prepayment(channel_id, amount_cents=700, booked_ms=unix_ms() - 1000)
        await d.sold.append(payment)
        d.rig.shop.statements.news(channel_id)
        await until(lambda: d.bought.settlement(Payment, channel_id))
        await d.settle()
        (signed,) = d.statements()
        assert (signed.message.payments_cents, signed.message.closing_cents) == (
            700,
            signed.message.gross_cents - 700,
        )
        assert clean(d.bought, d.sold)


class CentIssuer(Issuer):
    """Issues invoices of nothing too, so that small answers have one."""

    async def on_stated(self, signed: Signed[Statement], channel: Channel) -> None:
        self.stated.append(signed)
        await self.issue(signed, channel)


@pytest.mark.parametrize("size", [1, 32 * 1024, 32 * 1024 + 1, MAX_DOCUMENT_BYTES])
async def test_the_invoices_file_goes_over_whole(size: int) -> None:
    sold = MemoryLedger()
    issuer, receiver = CentIssuer(sold, size=size), Receiver()
    selling = Selling(details=own_details(Role.PROVIDER), hooks=issuer)
    settles_with = Buying(details=own_details(Role.CLIENT), hooks=receiver)
    async with deal(1, sold=sold, selling=selling, settles_with=settles_with) as d:
        await d.settle()
        # The provider issues, says so, and the client comes for it by itself.
        await until(lambda: receiver.files)
        assert receiver.files == issuer.files
        (channel,) = d.bought.channels()
        assert len(d.bought.settlement(Invoice, channel.message.channel)) == 1


@pytest.mark.parametrize("fault", ["other bytes", "gone", "too large"])
async def test_a_file_that_is_not_the_invoices_is_not_taken_and_breaks_nothing(fault: str) -> None:
    sold = MemoryLedger()
    issuer, receiver = CentIssuer(sold), Receiver()
    selling = Selling(details=own_details(Role.PROVIDER), hooks=issuer)
    settles_with = Buying(details=own_details(Role.CLIENT), hooks=receiver)
    async with deal(1, sold=sold, selling=selling, settles_with=settles_with) as d:
        await d.settle()
        await until(lambda: issuer.files)
        (digest, file) = next(iter(issuer.files.items()))
        content = b"x" * (MAX_DOCUMENT_BYTES + 1) if fault == "too large" else b"other"
        issuer.files = {} if fault == "gone" else {digest: InvoiceFile(name=file.name, content=content)}
        receiver.files.clear()
        done = await d.settle(is_wanted=False)
        assert not receiver.files and len(done.waiting) == 1 and not session(d.purchaser).quarantine
        issuer.files = {digest: file}
        await d.settle(is_wanted=False)
        assert receiver.files == {digest: file}


async def test_another_clients_document_is_not_handed_out() -> None:
    sold = MemoryLedger()
    issuer = CentIssuer(sold)
    selling = Selling(details=own_details(Role.PROVIDER), hooks=issuer)
    async with deal(1, sold=sold, selling=selling) as d:
        await d.settle()
        await until(lambda: issuer.files)
        (channel,) = d.bought.channels()
        stranger = await Buyer.connect(d.rig, secret_key("stranger"))
        for channel_id in (channel.message.channel, stranger.channel.message.channel):
            request = DocumentRequest(channel=channel_id, document_sha256=next(iter(issuer.files)), offset=0)
            kind, payload = await stranger.ask(Kind.DOCUMENT_REQUEST, request.to_bytes())
            assert kind == Kind.REFUSAL
            assert parse_frame(payload, Refusal).code in ("unknown-channel", "unknown-document")
            # Nor its statements, nor a statement of it.
            if channel_id == channel.message.channel:
                held = SettlementHeld(channel=channel_id, after=BEGIN, until=END, held=())
                wish = StatementRequest(channel=channel_id, is_wanted=True, until_ms=0)
                for kind_sent, frame in ((Kind.SETTLE, held), (Kind.STATEMENT_REQUEST, wish)):
                    kind, payload = await stranger.ask(kind_sent, frame.to_bytes())
                    assert (kind, parse_frame(payload, Refusal).code) == (Kind.REFUSAL, "unknown-channel")


@pytest.mark.parametrize("change", [{"due_ms": 1}, {"closing_cents": 1}, {"payments_cents": -5}])
async def test_a_provider_that_signs_another_statement_than_it_drafted_is_barred(change: dict[str, int]) -> None:
    async with deal(1) as d:
        book = d.rig.shop.statements

        def sign_another(channel: Any, draft: Any) -> Signed[Statement]:
            raised = {name: getattr(draft.statement, name) + by for name, by in change.items()}
            return sign_message(msgspec.structs.replace(draft.statement, **raised), Role.PROVIDER, PROVIDER)

        book.sign = sign_another  # type: ignore[method-assign]
        with pytest.raises(ProtocolViolation, match="another statement than it had drafted"):
            await d.settle()
        assert session(d.purchaser).quarantine
        (channel,) = d.bought.channels()
        assert not d.bought.settlement(Statement, channel.message.channel)
        ((record, reason),) = d.bought.evidence()
        assert record.payload_type == Statement.payload_type and reason.startswith("statement-mismatch")


async def test_differences_are_told_on_both_sides_and_nothing_is_signed() -> None:
    async with deal(2) as d:
        book, (channel,) = d.rig.shop.statements, d.bought.channels()
        book.details.kept[(PROVIDER.public_key.raw, Role.PROVIDER)] = details_of(Role.PROVIDER)
        # A provider whose VAT is another: its details say so, and it forgets to send them.
        book.details = DictDetails(details_of(Role.PROVIDER), details_of(Role.CLIENT))
        theirs = DictDetails(details_of(Role.PROVIDER), details_of(Role.CLIENT, vat_id="LV40003521600", country="LV"))

        async def draft(channel: Any, request: Any) -> Any:
            kept, book.details = book.details, theirs
            try:
                return await StatementBook.draft(book, channel, request)
            finally:
                book.details = kept

        book.draft = draft  # type: ignore[method-assign]
        done = await d.settle()
        assert {one.field for one in done.differences} >= {"vat"}
        assert done.drafted is not None and not done.statements
        await until(lambda: book.differences)
        told = book.differences[channel.message.channel]
        assert told.differences == tuple(done.differences)
        assert not d.sold.settlement(Statement, channel.message.channel)
        del book.draft
        await d.settle()
        assert len(d.statements()) == 1 and not book.differences


async def test_a_client_gets_no_more_statements_a_day_than_are_paid_for() -> None:
    async with deal(1) as d:
        codes = []
        for n in range(MOST_ASKED_FOR + 1):
            if n:
                await buy(d.purchaser, d.bought, d.sold)
            done = await d.settle()
            codes.append(done.nothing.code if done.nothing else "")
        assert codes[-1] == "asked-too-often" and len(d.statements()) == MOST_ASKED_FOR
        # The operator may, whenever it wants.
        (channel,) = d.bought.channels()
        d.rig.shop.statements.want(channel.message.channel, 0)
        await until(lambda: len(d.sold.settlement(Statement, channel.message.channel)) == MOST_ASKED_FOR + 1)


async def test_what_is_due_is_settled_without_a_word_on_the_next_link() -> None:
    bought, sold = MemoryLedger(), MemoryLedger()
    async with deal(2, bought=bought, sold=sold):
        pass
    with clocks_ahead(31):
        async with deal(0, bought=bought, sold=sold) as d:
            await until(lambda: len(d.issuer.stated) == 1)
            (signed,) = d.statements()
            assert signed.message.last_receipt == 2 and signed.message.until_ms % 86_400_000 == 0


CUTS = ["drafted", "agreed", "signed", "at the client", "countersigned", "on record"]


@pytest.mark.parametrize("cut", CUTS)
async def test_cut_off_anywhere_the_next_exchange_takes_it_up(cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agreed = AgreedInMemory()
    settles_with = Buying(details=own_details(Role.CLIENT), hooks=Receiver(), agreed=agreed)
    async with deal(2, settles_with=settles_with) as d:
        (channel,) = d.bought.channels()

        def lose(*_: Any) -> None:
            for link in [one for links in d.rig.shop.links._by_client.values() for one in links]:
                link.abort()

        async def lose_draft(*_: Any) -> Any:
            lose()
            raise Refused("busy", "gone")

        def lose_and_refuse(*_: Any) -> Any:
            lose()
            raise Refused("busy", "gone")

        async def end(*_: Any) -> None:
            raise Refused("busy", "the client's process ended")

        with monkeypatch.context() as patched:
            match cut:
                case "drafted":
                    patched.setattr(StatementBook, "draft", lose_draft)
                case "agreed":
                    patched.setattr(StatementBook, "sign", lose_and_refuse)
                case "signed":
                    patched.setattr(StatementExchange, "_send_signed", lose)
                case "at the client":
                    patched.setattr(StatementClient, "_keep", end)
                case "countersigned":
                    patched.setattr(StatementExchange, "_countersigned", lose)
                case "on record":
                    patched.setattr(StatementExchange, "_on_record", lose)
            with contextlib.suppress(RemoteError):
                await d.settle()
        bought, sold = d.bought.crashed(), d.sold.crashed()
    signed = {one.id for one in sold.settlement(Statement, channel.message.channel)}
    assert len(signed) == (cut not in ("drafted", "agreed"))
    async with deal(1, bought=bought, sold=sold, settles_with=settles_with) as d:
        await d.settle()
        first, *rest = d.statements()
        assert not signed or {first.id} == signed
        assert [one.message.statement_number for one in rest] == list(range(2, 2 + len(rest)))
        assert d.statements()[-1].message.last_receipt == 3
        await until(lambda: first.id in {one.id for one in d.issuer.stated})
        assert clean(bought, sold)


async def test_a_client_that_lost_its_note_is_not_stuck_with_what_is_almost_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bought, sold = MemoryLedger(), MemoryLedger()

    async def end(*_: Any) -> None:
        raise Refused("busy", "the client's process ended")

    async with deal(2, bought=bought, sold=sold) as d:
        with monkeypatch.context() as patched:
            patched.setattr(StatementClient, "_keep", end)
            with contextlib.suppress(RemoteError):
                await d.settle()
    (channel,) = sold.channels()
    (pending,) = sold.settlement(Statement, channel.message.channel)
    assert set(pending.signers) == {Role.PROVIDER}
    with clocks_ahead(20):
        async with deal(0, bought=bought, sold=sold) as d:  # with nothing noted
            sessions = d.purchaser.sessions
            ((_, done),), _ = await sessions.settle(PROVIDER.public_key, "", 0)
            assert [one.field for one in done.differences] == ["due_ms"] and done.is_drafted_signed
            ((_, done),), _ = await sessions.settle(PROVIDER.public_key, "", 0, accepts_due=True)
            assert [one.id for one in done.statements] == [pending.id] == [one.id for one in d.statements()]
            assert not done.differences and clean(bought, sold)


@pytest.mark.parametrize("is_offer_known", [True, False])
async def test_a_provider_that_has_set_another_time_zone_is_settled_with(
    is_offer_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At noon, so that it is another day there than where the receipt's offer says.
    with clocks_ahead((43_200_000 - unix_ms()) % 86_400_000 / 86_400_000):
        async with deal(1) as d:
            offer = d.purchaser.book.offer_of(PROVIDER.public_key.peer_id)
            assert offer is not None and offer.message.utc_offset_minutes == 0
            d.rig.shop.statements.terms = Terms(days=LocalDays.at_offset(840))
            if is_offer_known:
                moved = msgspec.structs.replace(offer.message, utc_offset_minutes=840)
                offer = sign_message(moved, Role.PROVIDER, PROVIDER)
            monkeypatch.setattr(d.purchaser.book, "offer_of", lambda _: offer)
            done = await d.settle()
            assert bool(done.statements) is is_offer_known
            assert {one.field for one in done.differences} == (set() if is_offer_known else {"until_ms"})


async def test_news_of_channels_without_end_is_not_kept() -> None:
    async with deal(1) as d:
        (channel,) = d.bought.channels()
        await session(d.purchaser).ready(5.0)
        book, ours = d.rig.shop.statements, session(d.purchaser).statements
        assert book is not None
        client = parse_public_key(channel.message.client)
        await until(lambda: book._watchers.of(client))
        async with ours._turn:  # the client is busy
            book.news(channel.message.channel)
            await until(lambda: ours._turn._waiters)
            for n in range(MAX_COMPARED + 1):
                for watcher in book._watchers.of(client):
                    watcher.tell(digest(f"news {n}"))
                await until(lambda n=n: len(ours._wanted) > n or not len(book._watchers))
            await until(lambda: not len(book._watchers), timeout_s=5)
            assert len(ours._wanted) <= MAX_COMPARED


async def test_it_goes_on_once_the_ledger_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with deal(1) as d:
        (channel,) = d.bought.channels()
        channel_id = channel.message.channel
        await session(d.purchaser).ready(5.0)
        book, channels, failed = d.rig.shop.statements, d.bought.channels, list[int]()
        assert book is not None
        await until(lambda: book._watchers.of(parse_public_key(channel.message.client)))

        def fail() -> Any:
            failed.append(1)
            raise LedgerError("the disk does not answer.")

        await d.sold.append(make_prepayment(channel_id, amount_cents=700, booked_ms=unix_ms() - 1000))
        monkeypatch.setattr(d.bought, "channels", fail)
        book.news(channel_id)
        await until(lambda: failed)
        monkeypatch.setattr(d.bought, "channels", channels)
        session(d.purchaser).statements.soon(bytes(32))  # whatever wakes it
        await until(lambda: d.bought.settlement(Payment, channel_id))


async def test_a_provider_that_was_too_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pgrid.client.wanted.BUSY_PAUSE_S", 0.05)
    async with deal(1) as d:
        check, refused = d.rig.shop.links.check_settlement, list[int]()

        def refuse_three_times(*asked: Any) -> None:
            if len(refused) < 3:
                refused.append(1)
                raise Refused("busy", "your address settles too often.")
            check(*asked)

        monkeypatch.setattr(d.rig.shop.links, "check_settlement", refuse_three_times)
        (channel,) = d.bought.channels()
        book = d.rig.shop.statements
        assert book is not None
        book.want(channel.message.channel, 0)
        # The provider has told of it once, and the statement is asked for although none is due.
        await until(lambda: d.receiver.stated)
        assert len(refused) == 3 and len(d.statements()) == 1


async def test_many_records_at_once_are_checked_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def checked(*given: Any, **more: Any) -> Any:
        threads.append(threading.current_thread())
        return check_taken(*given, **more)

    monkeypatch.setattr("p2pgrid.client.statement_exchange.check_taken", checked)
    async with deal(0) as d:
        await buy(d.purchaser, d.bought, d.sold)
        (channel,) = d.bought.channels()
        name = channel.message.channel
        now_ms = unix_ms()
        paid = [make_prepayment(name, reference=f"A{n}", entry=digest(f"{n}"), booked_ms=now_ms) for n in range(40)]
        await d.sold.append(*paid)
        await d.settle(is_wanted=False)
        assert len(d.bought.settlement(Payment, name)) == 40
        assert threads and threading.main_thread() not in threads
