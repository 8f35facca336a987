"""What each side lies about batch orders, beside what it lies about any."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import msgspec

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.actions import Action, Actions, Send
from p2pgrid.proto.batch import batch_commitment, counted_lines, line_amount, sum_of
from p2pgrid.proto.messages import MAX_BATCH_REQUESTS, Receipt, RequestLine, Status, Usage
from p2pgrid.proto.pricing import owes_nothing
from p2pgrid.proto.record import Role, Signed
from p2pgrid.proto.wire.base import parse_frame
from p2pgrid.proto.wire.kinds import Kind
from p2pgrid.proto.wire.orders import (
    MAX_REQUEST_BYTES,
    BatchOpening,
    OrderOpening,
    RequestCancel,
    RequestEnded,
    RequestHead,
    RequestRefused,
)
from tests.simulation import batch_buyer, batch_seller, lying_client, lying_provider
from tests.simulation.lies import forged
from tests.simulation.lying_client import LyingOrderTalk as LyingClientTalk
from tests.simulation.lying_provider import LyingOrderTalk as LyingProviderTalk
from tests.simulation.seller import Talk

LAST_INDEX = MAX_BATCH_REQUESTS - 1


# -- the provider -------------------------------------------------------------------------------------------------


class ProviderTalk(LyingProviderTalk, batch_seller.BatchTalk):
    """A batch order served by a liar."""

    def read_engine(self) -> None:
        machine = self.machine
        if machine is None or not self.lies.tell("window overrun"):
            batch_seller.BatchTalk.read_engine(self)
            return
        acknowledged, machine._gone_acknowledged = machine._gone_acknowledged, 10**6
        batch_seller.BatchTalk.read_engine(self)
        machine._gone_acknowledged = acknowledged

    def send(self, kind: int, payload: bytes) -> None:
        tell, random = self.lies.tell, self.world.random
        if kind == Kind.PART:
            if tell("batch: a part of what was never asked"):
                payload = bytes([LAST_INDEX]) + payload[1:]
            if tell("batch: a part under another's index"):
                payload = bytes([payload[0] ^ 1]) + payload[1:]
            if tell("text left out"):
                return
            if tell("batch: ended, and it was not"):
                status = random.choice((Status.FAILED, Status.CANCELLED, Status.COMPLETED))
                super().send(Kind.REQUEST_ENDED, RequestEnded(index=payload[0], status=status).to_bytes())
        if kind == Kind.REQUEST_ENDED and tell("batch: an end withheld"):
            return
        super().send(kind, payload)
        if kind == Kind.REQUEST_HEAD and tell("batch: refused after its head"):
            index = parse_frame(payload, RequestHead).index
            super().send(Kind.REQUEST_REFUSED, RequestRefused(index=index, code="busy", message="").to_bytes())
        if kind in (Kind.REQUEST_ENDED, Kind.RECEIPT) and tell("batch: parts after the end"):
            index = parse_frame(payload, RequestEnded).index if kind == Kind.REQUEST_ENDED else 0
            super().send(Kind.PART, bytes([index]) + b'data: {"choices": []}\n\n')

    def act(self, actions: Actions) -> None:
        for part in self.machine._parts if self.machine is not None else ():
            is_borne = part is not None and part.status is not None and owes_nothing(part.status)
            if part is not None and is_borne and self.lies.tell("batch: a tick counts what failed"):
                part.status = Status.CANCELLED
        super().act(actions)

    def _told(self, true: Signed[Any]) -> Signed[Any]:
        told = super()._told(true)
        return self._with_other_lines(told) if true.message.requests else told

    def _with_other_lines(self, true: Signed[Receipt]) -> Signed[Receipt]:
        """The receipt with other lines, whose sums fit; or with sums that do not."""
        tell, random, window = self.lies.tell, self.world.random, self.world.plan.window
        lines = list(true.message.requests)
        at = random.randrange(len(lines))
        if tell("batch: a line more"):
            lines.insert(at, lines[at])
        if tell("batch: a line of a request never asked"):
            lines.append(msgspec.structs.replace(lines[at], request_commitment=random.randbytes(32)))
        if tell("batch: a line's counts inflated"):
            lines[at] = _longer(lines[at], random.choice((1, window, 3 * window)))
        if tell("batch: a window more in every line"):
            lines = [_longer(one, window) for one in lines]
        if tell("batch: what failed is billed"):
            lines = [_billed(one) for one in lines]
        if tell("batch: lines in another order"):
            random.shuffle(lines)
        if tell("batch: nothing asked for, and billed"):
            lines = [msgspec.structs.replace(one, request_commitment=bytes(32)) for one in lines]
        if tell("batch: a line left out"):
            del lines[at]
        changes: dict[str, Any] = {"requests": tuple(lines)}
        if not tell("batch: sums that do not fit"):
            changes |= self._sums(msgspec.structs.replace(true.message, **changes))
        elif random.random() < 0.5:
            extra = msgspec.structs.replace(true.message.usage, output_tokens=true.message.usage.output_tokens + 5)
            changes["usage"] = extra
        return forged(true, Role.PROVIDER, self.world.provider_key, **changes)

    def _sums(self, receipt: Receipt) -> dict[str, Any]:
        """What the receipt must say where these are its lines."""
        assert self.machine is not None
        counted = counted_lines(receipt)
        try:
            amount = sum(line_amount(one, self.machine._tariff) for one in receipt.requests)
        except InvalidRecord:
            return {}
        return {
            "usage": sum_of(one.usage for one in counted),
            "response_commitment": batch_commitment(one.response_commitment for one in counted),
            "amount_pico": amount,
            "channel_total_pico": receipt.channel_total_pico - receipt.amount_pico + amount,
        }


def _longer(line: RequestLine, tokens: int) -> RequestLine:
    usage = msgspec.structs.replace(line.usage, output_tokens=line.usage.output_tokens + tokens)
    return msgspec.structs.replace(line, usage=usage, first_token_ms=line.first_token_ms or 1)


def _billed(line: RequestLine) -> RequestLine:
    if not owes_nothing(line.status):
        return line
    usage = line.usage if line.usage.output_tokens else Usage(prompt_tokens=20, output_tokens=5)
    return msgspec.structs.replace(line, status=Status.COMPLETED, usage=usage, first_token_ms=1)


class LyingSeller(lying_provider.LyingSeller):
    """A provider's process that lies about batch orders too."""

    talk_types: ClassVar[dict[int, type[Talk]]] = {**lying_provider.LyingSeller.talk_types, Kind.BATCH: ProviderTalk}


# -- the client ---------------------------------------------------------------------------------------------------


class ClientTalk(LyingClientTalk, batch_buyer.BatchTalk):
    """A batch order of a liar's."""

    def act(self, actions: Actions) -> None:
        out: list[Action] = []
        for action in actions:
            match action:
                case Send(Kind.BATCH, payload):
                    out += self._twisted_opening(payload)
                case Send(Kind.REQUEST, payload):
                    out += self._twisted_request(payload)
                case Send(Kind.BATCH_CLOSE):
                    out += self._twisted_close()
                case _:
                    out.append(action)
        super().act(out)

    def receive(self, kind: int, payload: bytes) -> None:
        super().receive(kind, payload)
        if not self.is_live or kind not in (Kind.PART, Kind.REQUEST_ENDED):
            return
        if self.lies.tell("batch: cancels what was never asked"):
            self.send(Kind.REQUEST_CANCEL, RequestCancel(index=LAST_INDEX).to_bytes())
        if self.lies.tell("batch: cancels what is over"):
            self.send(Kind.REQUEST_CANCEL, RequestCancel(index=0).to_bytes())
        if kind == Kind.PART and not self.link.is_cut and self.lies.tell("cut after a token"):
            self.link.cut(self.world.random)

    def _twisted_opening(self, payload: bytes) -> list[Action]:
        tell, random, buyer = self.lies.tell, self.world.random, self.buyer
        assert isinstance(buyer, lying_client.LyingBuyer)
        opening, true = parse_frame(payload, BatchOpening), self.machine.order
        told, order = true, true.message
        for name, changes in (
            ("batch: more requests than are offered", {"max_requests": MAX_BATCH_REQUESTS}),
            ("batch: shorter prompts allowed", {"max_prompt_tokens": random.choice((1, 40))}),
            ("batch: less money allowed", {"max_amount_pico": random.choice((0, 1, order.max_amount_pico // 2))}),
            ("batch: commits to a body", {"request_commitment": random.randbytes(32)}),
            ("batch: an order of one sent as a batch", {"max_requests": 1}),
        ):
            if tell(name):
                told = forged(told, Role.CLIENT, buyer.key, **changes)
        if told.id != true.id:
            self.world.ordered(told)
            self.machine.order, self.order_id = told, told.id  # type: ignore[misc]
            opening = msgspec.structs.replace(opening, order=told.record.to_bytes())
        if tell("batch: sent as an order of one"):
            alone = OrderOpening(order=opening.order, commitment_key=opening.commitment_key, body_bytes=2)
            buyer.raw([(Kind.ORDER, alone.to_bytes()), (Kind.BODY, b"{}")])
            return []
        return [Send(Kind.BATCH, opening.to_bytes())]

    def _twisted_request(self, payload: bytes) -> list[Action]:
        tell = self.lies.tell
        if tell("batch: an empty request"):
            return [Send(Kind.REQUEST, b"")]
        if tell("batch: a request too long"):
            return [Send(Kind.REQUEST, payload + b" " * MAX_REQUEST_BYTES)]
        if tell("batch: longer answers than it allows"):
            payload = payload.replace(b'"max_tokens":', b'"max_tokens":7')
        if tell("batch: its number used again for an order of one"):
            self._use_number_again(payload)
        sent = Send(Kind.REQUEST, payload)
        return [sent] * (20 if tell("batch: more requests than it allows") else 1)

    def _use_number_again(self, body: bytes) -> None:
        assert isinstance(self.buyer, lying_client.LyingBuyer)
        alone = forged(self.machine.order, Role.CLIENT, self.buyer.key, max_requests=1)
        self.world.ordered(alone, self.asked[-1])
        opening = OrderOpening(
            order=alone.record.to_bytes(), commitment_key=self.world.random.randbytes(32), body_bytes=len(body)
        )
        self.buyer.raw([(Kind.ORDER, opening.to_bytes()), (Kind.BODY, body)])

    def _twisted_close(self) -> list[Action]:
        closing = Send(Kind.BATCH_CLOSE, b"")
        if self.lies.tell("batch: never closed"):
            return []
        if self.lies.tell("batch: closed twice"):
            return [closing, closing]
        if self.lies.tell("batch: closed, and more sent") and self.asked:
            return [closing, Send(Kind.REQUEST, self.asked[-1].body)]
        return [closing]


class LyingBuyer(lying_client.LyingBuyer):
    """A client's process that lies about batch orders too."""

    batch_type = cast("type[batch_buyer.BatchTalk]", ClientTalk)

    def batches(self) -> list[batch_buyer.BatchTalk]:
        return [talk for talk in self.orders.values() if isinstance(talk, batch_buyer.BatchTalk)]
