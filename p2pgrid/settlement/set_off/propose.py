"""What two operators may set off, as records to be signed (docs/settlement/set-off.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from p2pgrid.errors import UsageError
from p2pgrid.proto.set_off import MAX_CLAIMS, Claim, SetOff, SetOffSide
from p2pgrid.settlement.payments.setoff import Debt, Settled
from p2pgrid.settlement.payments.setoff import set_off as balance
from p2pgrid.settlement.set_off.claims import OpenClaim
from p2pgrid.settlement.set_off.parties import Operator

_Part = tuple[OpenClaim, int]
"""So many cents of a claim."""


def propose(
    owed_to_us: Sequence[OpenClaim],
    owed_by_us: Sequence[OpenClaim],
    *,
    us: Operator,
    them: Operator,
    now_ms: int,
    until_ms: int,
    make_nonce: Callable[[], bytes],
    due_by_ms: int | None = None,
    most_cents: int | None = None,
) -> list[SetOff]:
    """The largest set-off of these claims, the oldest first: a record for each two channels that it takes.

    `due_by_ms` leaves out what falls due later, `most_cents` ends it. Raises UsageError where there is nothing to set
    off, or a card is missing. `make_nonce`: 32 random bytes.
    """
    ours, theirs = (_due(claims, due_by_ms) for claims in (owed_to_us, owed_by_us))
    currencies = sorted({claim.channel.currency for claim in (*ours, *theirs)})
    if not ours or not theirs:
        who = "the other side owes" if theirs else "we owe the other side" if ours else "anybody owes"
        raise UsageError(
            f"there is nothing to set off: no invoice is open that {who}.",
            hint="`p2pgrid set-off list` shows what is proposed already; --with FOLDER adds the other node's ledger.",
        )
    if len(currencies) > 1:
        raise UsageError(f"debts in {' and '.join(currencies)} cannot be set off: no rate was agreed.")
    first, second = _spread(ours, theirs, currencies[0])
    return [
        SetOff(
            **dict(zip(("first", "second"), sides, strict=True)),
            currency=currencies[0],
            amount_cents=sum(claim.cents for claim in sides[0].claims),
            agreed_ms=now_ms,
            until_ms=until_ms,
            nonce=make_nonce(),
        )
        for sides in _pairs(_cut(first, most_cents), _cut(second, most_cents), us, them)
    ]


def _due(claims: Iterable[OpenClaim], due_by_ms: int | None) -> list[OpenClaim]:
    return [claim for claim in claims if due_by_ms is None or claim.due_ms <= due_by_ms]


def _spread(ours: Sequence[OpenClaim], theirs: Sequence[OpenClaim], currency: str) -> tuple[list[_Part], list[_Part]]:
    """What is taken off which claim, on either side, by the rule of `payments.setoff`."""
    numbered = {_number(claim): (side, claim) for side, claims in (("us", ours), ("them", theirs)) for claim in claims}
    debts = [
        Debt(
            number=number,
            creditor=side,
            debtor="them" if side == "us" else "us",
            open_cents=claim.open_cents,
            due=datetime.fromtimestamp(claim.due_ms / 1000, UTC).date(),
            currency=currency,
        )
        for number, (side, claim) in numbered.items()
    ]
    agreed = balance(debts)

    def of(side: str) -> list[_Part]:
        settled: list[Settled] = [one for one in agreed.settled if one.creditor == side]
        return [(numbered[one.number][1], one.cents) for one in settled]

    return of("us"), of("them")


def _number(claim: OpenClaim) -> str:
    """Unique, and in the order of the invoices' numbers."""
    return f"{claim.invoice_number}\0{claim.channel.channel.hex()}{claim.statement.hex()}"


def _cut(parts: Sequence[_Part], most_cents: int | None) -> list[_Part]:
    found, left = [], most_cents if most_cents is not None else sum(cents for _, cents in parts)
    for claim, cents in parts:
        taken = min(cents, left)
        left -= taken
        found += [(claim, taken)] if taken else []
    return found


def _pairs(
    ours: list[_Part], theirs: list[_Part], us: Operator, them: Operator
) -> Iterable[tuple[SetOffSide, SetOffSide]]:
    """Both lists walked together: sides of one channel each, with the same sum, at most `MAX_CLAIMS` claims each."""
    pieces: dict[tuple[bytes, bytes], list[tuple[_Part, _Part]]] = {}
    at, other = list(ours), list(theirs)
    while at and other:
        (mine, cents), (its, its_cents) = at[0], other[0]
        part = min(cents, its_cents)
        key = mine.channel.channel, its.channel.channel
        pieces.setdefault(key, []).append(((mine, part), (its, part)))
        at[:1] = [(mine, cents - part)] if cents > part else []
        other[:1] = [(its, its_cents - part)] if its_cents > part else []
    for walked in pieces.values():
        while walked:
            fits = next(n for n in range(len(walked), 0, -1) if _fits(walked[:n]))
            some, walked = walked[:fits], walked[fits:]
            one, two = _side([mine for mine, _ in some]), _side([its for _, its in some])
            one = _carded(one, us.card_of(one.creditor, two.debtor))
            two = _carded(two, them.card_of(two.creditor, one.debtor))
            yield (one, two) if one.channel < two.channel else (two, one)


def _fits(pieces: Sequence[tuple[_Part, _Part]]) -> bool:
    return all(len({_number(piece[side][0]) for piece in pieces}) <= MAX_CLAIMS for side in (0, 1))


def _side(parts: Sequence[_Part]) -> SetOffSide:
    channel = parts[0][0].channel
    cents: dict[tuple[bytes, str], int] = {}
    for claim, part in parts:
        place = claim.statement, claim.invoice_number
        cents[place] = cents.get(place, 0) + part
    claims = tuple(Claim(statement=s, invoice_number=n, cents=c) for (s, n), c in cents.items())
    return SetOffSide(
        channel=channel.channel, creditor=channel.provider, debtor=channel.client, card=b"", claims=claims
    )


def _carded(side: SetOffSide, card: bytes) -> SetOffSide:
    return SetOffSide(channel=side.channel, creditor=side.creditor, debtor=side.debtor, card=card, claims=side.claims)
