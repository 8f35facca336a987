"""A batch order played through both machines, with the engine's answers and the wire in the test's hands."""

from __future__ import annotations

from collections import deque
from typing import Any

from p2pgrid.errors import Refused
from p2pgrid.proto.acceptance import accept_batch, parse_batch, verify_arrived
from p2pgrid.proto.actions import (
    AbortEngine,
    AbortEngineFor,
    Actions,
    AskEngineFor,
    Breach,
    Disputed,
    Persist,
    Send,
    Settled,
)
from p2pgrid.proto.asked_request import AskedRequest
from p2pgrid.proto.batch_buyer import Need
from p2pgrid.proto.batch_seller import SellerBatch
from p2pgrid.proto.bundles import Bundle
from p2pgrid.proto.messages import BatchTerms, Meter, Receipt, Status, Usage, Voucher
from p2pgrid.proto.placement import place_batch
from p2pgrid.proto.proposal import Ending, propose_receipt
from p2pgrid.proto.record import Message, Role, Signed
from p2pgrid.proto.request import metered_body, parse_request
from p2pgrid.proto.verdict import Verdict, audit_records
from p2pgrid.proto.wire.kinds import Kind
from tests.proto.simulation import CHAT, CLIENT, MODEL, NOW_MS, PROVIDER, TARIFF, make_books, make_channel, make_offer

KEY = bytes([7] * 32)


def body_of(max_tokens: int = 8, text: str = "Labas!") -> bytes:
    """A short request, as the gateway sends it."""
    program = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}
    return metered_body(program)


class BatchRig:
    """One channel, one batch order, both sides. Messages wait in `to_client` and `to_provider` until they are moved."""

    def __init__(
        self,
        *,
        window: int = 16,
        requests: int = 4,
        batch_ms: int = 100,
        prompt: int = 100,
        output: int = 32,
        timeout_ms: int = 60_000,
        countersigned: int = 0,
        **offer: Any,
    ) -> None:
        batch = BatchTerms(batch_requests=requests, batch_ms=batch_ms)
        self.offer = make_offer(window=window, **{"batch": batch, **offer})
        self.channel = make_channel(self.offer)
        self.sold = make_books(self.channel, countersigned=countersigned)
        self.bought = make_books(self.channel, countersigned=countersigned)
        self.window = window
        self.now_ms = NOW_MS
        self.need = Need(prompt, output)
        self.to_client: deque[tuple[int, bytes]] = deque()
        self.to_provider: deque[tuple[int, bytes]] = deque()
        self.provider_ledger: list[Signed[Message]] = []
        self.client_ledger: list[Signed[Message]] = []
        self.breaches: list[Breach] = []
        self.disputes: list[Disputed] = []
        self.settled: list[Signed[Receipt]] = []
        self.at_engine: dict[int, bytes] = {}
        self.aborted: set[int] = set()
        self.bodies: list[bytes] = []
        self.refused: Refused | None = None
        self.seller: SellerBatch | None = None
        body = body_of()
        self.buyer, actions = place_batch(
            self.bought,
            self.offer,
            parse_request(CHAT, body),
            CHAT,
            self.need,
            key=CLIENT,
            commitment_key=KEY,
            now_ms=self.now_ms,
            first_token_timeout_ms=timeout_ms,
        )
        self._run_client(actions)

    # -- the client -------------------------------------------------------------------------------------------------

    def ask(self, max_tokens: int = 8, text: str = "Labas!") -> AskedRequest | None:
        """One more request; None if it does not fit."""
        body = body_of(max_tokens, text)
        asked = self.buyer.ask(parse_request(CHAT, body), CHAT, body, self.need)
        if asked is None:
            return None
        self._run_client(asked[1])
        return asked[0]

    def close(self) -> None:
        self._run_client(self.buyer.close())

    def cancel(self, asked: AskedRequest) -> None:
        self._run_client(self.buyer.cancel_request(asked))

    def tell_client(self, kind: int, payload: bytes) -> None:
        self._run_client(self.buyer.message(kind, payload, self.now_ms))

    def _run_client(self, actions: Actions) -> None:
        for action in actions:
            match action:
                case Persist(signed):
                    self.client_ledger.append(signed)
                case Send(kind, payload):
                    self.to_provider.append((kind, payload))
                case Breach():
                    self.breaches.append(action)
                case Disputed():
                    self.disputes.append(action)
                case Settled(receipt):
                    self.settled.append(receipt)

    # -- the provider -----------------------------------------------------------------------------------------------

    @property
    def sale(self) -> SellerBatch:
        assert self.seller is not None
        return self.seller

    def tell_provider(self, kind: int, payload: bytes) -> None:
        """A message reaches the provider. Raises what the machine does."""
        if kind == Kind.BATCH:
            arrived = parse_batch(payload)
            order = verify_arrived(arrived, self.sold)
            try:
                self.seller, actions = accept_batch(
                    self.sold, order, arrived.opening.commitment_key, self.offer, key=PROVIDER, now_ms=self.now_ms
                )
            except Refused as refusal:
                self.refused = refusal
                return
            self._run_provider(actions)
        elif self.seller is None:
            return
        elif kind == Kind.REQUEST:
            self._run_provider(self.seller.request(payload, self.now_ms))
        else:
            self._run_provider(self.seller.message(kind, payload, self.now_ms))

    def head(self, index: int, status: int = 200) -> None:
        self._run_provider(self.sale.head_for(index, status, "text/event-stream"))

    def engine(self, index: int, *events: bytes) -> None:
        """The engine sends events for one request."""
        for event in events:
            self._run_provider(self.sale.bytes_for(index, event, self.now_ms))

    def ends(self, index: int) -> None:
        self._run_provider(self.sale.end_for(index, self.now_ms))

    def fails(self, index: int) -> None:
        self._run_provider(self.sale.failed_for(index, self.now_ms))

    def clock(self, ms: int) -> None:
        """Time passes on both sides."""
        self.now_ms += ms
        if self.seller is not None:
            self._run_provider(self.seller.tick(self.now_ms))

    def lose_link(self) -> Signed[Receipt] | None:
        """The link is gone, and the provider makes the receipt that a resume would: None if there was one."""
        self.to_client.clear()
        self.to_provider.clear()
        self.buyer.link_lost()
        if self.seller is None:
            return None
        self._run_provider(self.seller.link_lost(self.now_ms))
        if self.seller.receipt is not None:
            return None
        vouchers = [s for s in self.client_ledger if isinstance(s.message, Voucher)]
        usage, commitment = Usage(), bytes(32)
        if vouchers:
            last = vouchers[-1].message
            assert isinstance(last, Voucher)
            usage = last.usage
            commitment = next(
                s.message.response_commitment
                for s in self.client_ledger
                if isinstance(s.message, Meter) and s.id == last.meter
            )
        ending = Ending(status=Status.INTERRUPTED, response_commitment=commitment)
        return propose_receipt(self.sold, self.seller.order, TARIFF, usage, ending, key=PROVIDER, now_ms=self.now_ms)

    def _run_provider(self, actions: Actions) -> None:
        for action in actions:
            match action:
                case Persist(signed):
                    self.provider_ledger.append(signed)
                case Send(kind, payload):
                    self.to_client.append((kind, payload))
                case AskEngineFor(index, body):
                    self.at_engine[index] = body
                case AbortEngineFor(index):
                    self.aborted.add(index)
                case AbortEngine():
                    self.aborted.update(self.at_engine)
        while self.seller is not None and self.seller.is_complete:
            self._run_provider(self.seller.conclude(self.now_ms))

    # -- the wire ---------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Move messages both ways until none waits."""
        while self.to_client or self.to_provider:
            while self.to_provider:
                self.tell_provider(*self.to_provider.popleft())
            while self.to_client:
                self.tell_client(*self.to_client.popleft())

    @property
    def receipt(self) -> Receipt:
        """The receipt that both have signed."""
        assert len(self.settled) == 1, (self.breaches, self.disputes)
        return self.settled[0].message

    def complaints(self) -> list[str]:
        """Codes of what the client found wrong."""
        return [one.code for one in self.breaches] + [one.dispute.message.reason for one in self.disputes]

    def audit(self) -> Verdict:
        """Both sides' ledgers, audited."""
        head: list[Signed[Message]] = [self.offer, self.channel]
        return audit_records(
            Bundle(f"{side}.jsonl", enumerate((s.record for s in [*head, *ledger]), start=1), side)
            for side, ledger in ((Role.PROVIDER, self.provider_ledger), (Role.CLIENT, self.client_ledger))
        )
