"""What a provider's main process and its workers say to one another, beside what the ledger says."""

from __future__ import annotations

from collections import Counter

import msgspec

from p2pgrid.commands.wire import Failure
from p2pgrid.config import NetworkEntry
from p2pgrid.processes.bus import BusMessage
from p2pgrid.proto.books import Arrears, ChannelBooks
from p2pgrid.proto.record import Record
from p2pgrid.provider.limits import ProviderLimits
from p2pgrid.provider.tally import NUMBERS, Tally


class Model(msgspec.Struct, array_like=True, frozen=True):
    """A model as it is on sale now."""

    name: str
    engine_url: str
    concurrency: int
    is_up: bool


# -- from the main process to a worker


class Begin(BusMessage, frozen=True):
    """The first message."""

    NUMBER = 20

    data: str
    """The data folder, from which the worker reads the keys."""
    networks: tuple[NetworkEntry, ...]
    sell_in: tuple[str, ...]
    limits: ProviderLimits
    processes: int
    """Rows of the shared counters."""
    columns: tuple[str, ...]


class Models(BusMessage, frozen=True):
    """The models, and where their engines are."""

    NUMBER = 21

    models: tuple[Model, ...]


class Granted(BusMessage, frozen=True):
    """The channel is this worker's."""

    NUMBER = 22

    request: int
    channel: Record
    last_order_number: int
    """The highest that was used, recorded or not."""
    away_since_ms: int


class ClaimFailed(BusMessage, frozen=True):
    """What the client wants to resume cannot be resumed."""

    NUMBER = 23

    request: int
    failure: Failure


class GiveUp(BusMessage, frozen=True):
    """Another process is to have the channel: end what runs on it, and answer `Released`."""

    NUMBER = 24

    channel: bytes


class Opened(BusMessage, frozen=True):
    """A client has opened a channel on a link of this worker's, whose it is now."""

    NUMBER = 25

    channel: Record
    link: int


class HeldByBoth(BusMessage, frozen=True):
    """Both sides of a channel hold these disputes and answers."""

    NUMBER = 26

    channel: bytes
    ids: tuple[bytes, ...]


class AnswerSaid(BusMessage, frozen=True):
    """A dispute of the channel is answered."""

    NUMBER = 27

    channel: bytes
    dispute: bytes


class CloseLink(BusMessage, frozen=True):
    """The client loses the link."""

    NUMBER = 28

    link: int
    reason: str


class StreamSend(BusMessage, frozen=True):
    """Send a message on a stream that was passed on."""

    NUMBER = 29

    stream: int
    kind: int
    payload: bytes


class StreamEnd(BusMessage, frozen=True):
    """The main process sends no more on the stream."""

    NUMBER = 30

    stream: int


class StreamReset(BusMessage, frozen=True):
    """Cut the stream."""

    NUMBER = 31

    stream: int
    code: int
    message: str


class Drain(BusMessage, frozen=True):
    """Take no new orders. Answered with `Draining`."""

    NUMBER = 32


class FailOrders(BusMessage, frozen=True):
    """End what runs as failed: there is no more time."""

    NUMBER = 33


class CreditNews(BusMessage, frozen=True):
    """What frees a channel's credit may have grown; and whether its client is behind with a payment."""

    NUMBER = 34

    channel: bytes
    overdue_from_ms: int
    """0 where nothing is open."""
    sentence: str


# -- from a worker to the main process


class LinkOpened(BusMessage, frozen=True):
    """A client has opened its first stream on a link."""

    NUMBER = 40

    link: int
    peer: bytes
    name: str
    caller: str
    """What its address is counted by."""


class LinkClosed(BusMessage, frozen=True):
    """A link is gone."""

    NUMBER = 41

    link: int


class LinkFault(BusMessage, frozen=True):
    """The client broke a rule on a stream."""

    NUMBER = 42

    link: int
    message: str


class StreamOpened(BusMessage, frozen=True):
    """A stream whose first message is none of an order's or a resume's: the main process goes on with it."""

    NUMBER = 43

    link: int
    stream: int
    kind: int
    payload: bytes


class StreamMessage(BusMessage, frozen=True):
    """A further message on a stream that was passed on."""

    NUMBER = 44

    stream: int
    kind: int
    payload: bytes


class StreamEnded(BusMessage, frozen=True):
    """The client sends no more on the stream."""

    NUMBER = 45

    stream: int


class StreamLost(BusMessage, frozen=True):
    """The client cut the stream, or its link is gone (`code` -1)."""

    NUMBER = 46

    stream: int
    code: int
    message: str


class Claim(BusMessage, frozen=True):
    """A client resumes a channel on a link of this worker's. Answered with `Granted` or `ClaimFailed`."""

    NUMBER = 47

    request: int
    peer: bytes
    record: Record
    """The channel as the client has it."""


class Released(BusMessage, frozen=True):
    """The worker has given up a channel; all that it recorded of it was sent before."""

    NUMBER = 48

    channel: bytes
    last_order_number: int
    away_since_ms: int


class DisputeTaken(BusMessage, frozen=True):
    """A client's dispute is on record."""

    NUMBER = 49

    dispute: bytes


class EvidenceFound(BusMessage, frozen=True):
    """A peer signed what breaks a rule."""

    NUMBER = 50

    peer: bytes
    record: Record
    reason: str


class TallySoFar(BusMessage, frozen=True):
    """What the worker has done since it began."""

    NUMBER = 51

    receipts: dict[str, int]
    refusals: dict[str, int]
    numbers: dict[str, int]
    """The other counters, by their names in `Tally`."""


class Draining(BusMessage, frozen=True):
    """No order is accepted from now on, and the counters say how many run."""

    NUMBER = 52


def credit_news(books: ChannelBooks) -> CreditNews:
    """The message for a channel whose books these are."""
    arrears = books.arrears
    return CreditNews(books.id, arrears.from_ms if arrears else 0, arrears.sentence if arrears else "")


def arrears_of(message: CreditNews) -> Arrears | None:
    """What the message says of the client's payments."""
    return Arrears(message.overdue_from_ms, message.sentence) if message.sentence else None


def tally_message(tally: Tally) -> TallySoFar:
    """The message that carries a tally."""
    return TallySoFar(dict(tally.receipts), dict(tally.refusals), {name: getattr(tally, name) for name in NUMBERS})


def tally_of(message: TallySoFar) -> Tally:
    """The tally that a message carries."""
    return Tally(receipts=Counter(message.receipts), refusals=Counter(message.refusals), **message.numbers)
