"""Logs judged: checkpoints against each other, proofs against checkpoints, receipts against what is demanded of them.

Nothing is found against a party for a proof that is not there, unless whoever asks for the audit demands proofs: a file
may be joined with one proof or with none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.attachments import Attachments, HeldCheckpoint, HeldProof
from p2pgrid.proto.card import Card
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.channel_book import Book, roles_of
from p2pgrid.proto.checkpoint import CHECKPOINT_TYPE, cosignatures_of
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.findings import Absence, Blemish, Draft, Place
from p2pgrid.proto.inclusion import INCLUSION_PROOF_TYPE
from p2pgrid.proto.judgement import Case, shortened
from p2pgrid.proto.messages import Offer
from p2pgrid.proto.record import Role
from p2pgrid.proto.rules import Fault

STALE_MS: Final = 86_400_000
"""A checkpoint that no witness has seen for so long is stale."""


@dataclass(frozen=True, slots=True)
class LogDemands:
    """What whoever asks for the audit wants to see of providers' logs. By default nothing."""

    proofs: bool = False
    """Every receipt with both signatures is shown to be in its provider's log."""
    witnesses: int = 0
    """So many peers beside the provider have cosigned its latest checkpoint, one of them within a day."""

    @property
    def any(self) -> bool:
        """True if something is demanded."""
        return self.proofs or self.witnesses > 0


NO_DEMANDS: Final = LogDemands()


def judge_logs(
    case: Case,
    attachments: Attachments,
    books: Sequence[Book],
    offers: Mapping[bytes, Held[Offer]],
    demands: LogDemands,
) -> None:
    """Report what is wrong with logs.

    `log-forked`, `bad-proof`, `record-missing` (a proof's checkpoint), `wrong-origin`, `after-checkpoint`; where it is
    demanded `not-logged`, `too-few-witnesses`, `checkpoint-stale`.
    """
    by_size: dict[int, list[HeldCheckpoint]] = defaultdict(list)
    for checkpoint_id in sorted(attachments.checkpoints):
        held = attachments.checkpoints[checkpoint_id]
        by_size[held.checkpoint.size].append(held)
    clients = {book.channel.message.client for book in books}
    forked = _judge_roots(case, by_size, clients)
    records = _loggable(case, books, offers) if attachments.proofs else {}
    logged: set[tuple[bytes, bytes]] = set()
    leaves: dict[tuple[bytes, int], tuple[HeldProof, HeldCheckpoint]] = {}
    for proof_id in sorted(attachments.proofs):
        proof = attachments.proofs[proof_id]
        borne_out = _borne_out(case, proof, by_size[proof.proof.tree_size])
        for checkpoint in borne_out:
            log_key = checkpoint.checkpoint.log_key.raw
            logged.add((log_key, proof.proof.record_id))
            first, of = leaves.setdefault((log_key, proof.proof.leaf_index), (proof, checkpoint))
            if first.proof.entry != proof.proof.entry and log_key not in forked:
                forked.add(log_key)
                sentence = f"two different entries as its leaf {proof.proof.leaf_index}."
                _report_fork(case, of, checkpoint, sentence, clients, [first.places[0], proof.places[0]])
        if borne_out and proof.proof.record_id in records:
            _judge_logged(case, proof, borne_out, *records[proof.proof.record_id])
    if demands.any:
        _judge_demands(case, attachments, books, logged, demands)


def _judge_roots(case: Case, by_size: Mapping[int, list[HeldCheckpoint]], clients: set[bytes]) -> set[bytes]:
    """Two roots of one size; the keys of the logs."""
    forked: set[bytes] = set()
    for size in sorted(by_size):
        first: dict[bytes, HeldCheckpoint] = {}
        for held in by_size[size]:
            log_key = held.checkpoint.log_key.raw
            other = first.setdefault(log_key, held)
            if other.checkpoint.root != held.checkpoint.root and log_key not in forked:
                forked.add(log_key)
                _report_fork(case, other, held, f"two different trees of {size} leaves.", clients)
    return forked


def _report_fork(
    case: Case,
    one: HeldCheckpoint,
    other: HeldCheckpoint,
    sentence: str,
    clients: set[bytes],
    more: Iterable[Place] = (),
) -> None:
    key = one.checkpoint.log_key.raw
    role = Role.CLIENT if key in clients else Role.PROVIDER
    places = tuple(dict.fromkeys([one.places[0], other.places[0], *more]))
    sentence = f"The log {one.checkpoint.origin} signed {sentence}"
    case.docket.add(Draft("log-forked", sentence, places, record_id=one.record_id, signers={role: key}))


def _borne_out(case: Case, proof: HeldProof, checkpoints: Sequence[HeldCheckpoint]) -> list[HeldCheckpoint]:
    """The checkpoints that the proof leads to; that there is none is reported."""
    found: list[HeldCheckpoint] = []
    why = ""
    for held in checkpoints:
        try:
            proof.proof.verify(held.checkpoint)
        except InvalidRecord as error:
            why = error.message
        else:
            found.append(held)
    what = f"the proof for leaf {proof.proof.leaf_index} of {proof.proof.tree_size}"
    if not checkpoints:
        bundles = tuple(sorted({place.bundle for place in proof.places}))
        sentence = f"No bundle holds the checkpoint that {what} leads to."
        draft = Draft("record-missing", sentence, tuple(proof.places), record_id=proof.record_id, holders=bundles)
        stands = "It stands where a proof's checkpoint is missing."
        case.docket.add_absence(Absence(CHECKPOINT_TYPE, (), "the checkpoint", draft, bundles, proof=stands))
    elif not found:
        sentence = f"{what[0].upper()}{what[1:]} leads to no checkpoint of that size: {why}"
        _spoilt(case, proof, Draft("bad-proof", sentence, tuple(proof.places), record_id=proof.record_id))
    return found


def _spoilt(case: Case, proof: HeldProof, draft: Draft) -> None:
    """Report a proof that shows nothing; the one that is missing for its record is then explained."""
    case.docket.add(draft)
    case.docket.add_blemish(Blemish(draft, INCLUSION_PROOF_TYPE, (proof.proof.record_id,)))


def _loggable(
    case: Case, books: Sequence[Book], offers: Mapping[bytes, Held[Offer]]
) -> dict[bytes, tuple[Held[Any], Book | None]]:
    """What a log may hold, by id, with the channel that it is of."""
    found: dict[bytes, tuple[Held[Any], Book | None]] = {i: (held, None) for i, held in offers.items()}
    found.update({i: (held, None) for i, held in case.cards.items()})
    for book in books:
        in_channel: tuple[Held[Any], ...] = (*book.all_receipts, *book.disputes.values(), *book.answers.values())
        found.update({held.record_id: (held, book) for held in in_channel})
    return found


def _judge_logged(
    case: Case, proof: HeldProof, checkpoints: Sequence[HeldCheckpoint], held: Held[Any], book: Book | None
) -> None:
    if isinstance(held.message, Card):
        return  # an operator's nodes log its cards, each in its own log
    keys = {held.message.provider} if book is None else set(roles_of(book.channel.message).values())
    own = [each for each in checkpoints if each.checkpoint.log_key.raw in keys]
    if not own:
        sentence = f"The proof for {held} leads to the log {checkpoints[0].checkpoint.origin}, which is no party's."
        channel = book.id if book is not None else b""
        _spoilt(case, proof, Draft("wrong-origin", sentence, tuple(proof.places), None, proof.record_id, channel))
        return
    if book is None:
        return
    issued_ms: int = getattr(held.message, "issued_ms", 0)
    seen_ms = [one.time_s * 1000 for each in own for one in _foreign_cosignatures(each)]
    if seen_ms and issued_ms - CLOCK_TOLERANCE_MS > min(seen_ms):
        sentence = f"By its time {held} comes after a checkpoint that it is in, as a witness saw it."
        case.report(book, held, Fault("after-checkpoint", sentence))


def _judge_demands(
    case: Case,
    attachments: Attachments,
    books: Sequence[Book],
    logged: set[tuple[bytes, bytes]],
    demands: LogDemands,
) -> None:
    latest: dict[bytes, HeldCheckpoint] = {}
    for checkpoint_id in sorted(attachments.checkpoints):
        held = attachments.checkpoints[checkpoint_id]
        key = held.checkpoint.log_key.raw
        # Of one size the one with most cosignatures: each is a copy with what somebody knew.
        if key not in latest or _rank(held) > _rank(latest[key]):
            latest[key] = held
    judged: set[bytes] = set()
    for book in books:
        provider = book.channel.message.provider
        if demands.proofs:
            _demand_proofs(case, book, logged)
        if demands.witnesses and provider not in judged:
            judged.add(provider)
            _demand_witnesses(case, book, latest.get(provider), demands.witnesses)


def _demand_proofs(case: Case, book: Book, logged: set[tuple[bytes, bytes]]) -> None:
    provider = book.channel.message.provider

    def phrase(labels: Sequence[str], more: int) -> str:
        return f"No bundle shows that the provider's log holds {shortened(labels, more)}."

    for number in sorted(book.receipts):
        held = book.receipts[number]
        if not held.claims(Role.CLIENT) or (provider, held.record_id) in logged:
            continue
        draft = Draft("not-logged", phrase([str(held)], 0), held.places[:1], None, held.record_id, book.id)
        absence = Absence(INCLUSION_PROOF_TYPE, (held.record_id,), str(held), draft, book.bundles)
        absence.merge, absence.phrase = ("not-logged", book.id), phrase
        absence.proof = "It stands where a proof of inclusion is missing."
        case.docket.add_absence(absence)


def _demand_witnesses(case: Case, book: Book, held: HeldCheckpoint | None, wanted: int) -> None:
    cosignatures = _foreign_cosignatures(held) if held is not None else []
    about: tuple[tuple[Place, ...], bytes]
    about = (tuple(held.places), held.record_id) if held is not None else (book.channel.places[:1], b"")
    places, record_id = about
    if len(cosignatures) < wanted:
        which = f"the provider's checkpoint of {held.checkpoint.size}" if held is not None else "no checkpoint"
        sentence = f"{len(cosignatures)} witnesses have cosigned {which}; {wanted} are demanded."
        if held is None:
            sentence = f"No bundle holds a checkpoint of the provider's log; {wanted} witnesses are demanded."
        case.docket.add(Draft("too-few-witnesses", sentence, places, None, record_id, book.id))
        return
    seen_ms = max(one.time_s * 1000 for one in cosignatures)
    if seen_ms + STALE_MS + CLOCK_TOLERANCE_MS < case.now_ms:
        sentence = "No witness has seen the provider's latest checkpoint within the day before the audit."
        case.docket.add(Draft("checkpoint-stale", sentence, places, None, record_id, book.id))


def _rank(held: HeldCheckpoint) -> tuple[int, int]:
    return held.checkpoint.size, len(_foreign_cosignatures(held))


def _foreign_cosignatures(held: HeldCheckpoint) -> list[Any]:
    """Those by others than the log's owner."""
    own = held.checkpoint.log_key.raw
    return [one for one in cosignatures_of(held.checkpoint) if one.witness.raw != own]
