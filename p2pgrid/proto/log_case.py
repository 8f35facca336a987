"""Logs judged: checkpoints against each other, proofs against checkpoints, receipts against what is demanded of them.

Nothing is found against a party for a proof that is not there, unless whoever asks for the audit demands proofs: a file
may be joined with one proof or with none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pgrid.proto.attachments import Attachments, HeldCheckpoint, HeldProof
from p2pgrid.proto.card import Card
from p2pgrid.proto.channel import CLOCK_TOLERANCE_MS
from p2pgrid.proto.channel_book import Book, roles_of
from p2pgrid.proto.checkpoint import CHECKPOINT_TYPE, cosignatures_of
from p2pgrid.proto.evidence import Held
from p2pgrid.proto.findings import Absence, Blemish, Draft, Place
from p2pgrid.proto.inclusion import INCLUSION_PROOF_TYPE
from p2pgrid.proto.judgement import Case, shortened
from p2pgrid.proto.messages import Channel, Offer
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


@dataclass(slots=True)
class Tree:
    """One tree of one log, with every copy of its checkpoint."""

    copies: list[HeldCheckpoint]
    _seen: list[tuple[bytes, int]] | None = None

    @property
    def first(self) -> HeldCheckpoint:
        return self.copies[0]

    @property
    def log_key(self) -> bytes:
        return self.first.checkpoint.log_key.raw

    @property
    def size(self) -> int:
        return self.first.checkpoint.size

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(sorted(place for copy in self.copies for place in copy.places))

    @property
    def seen(self) -> list[tuple[bytes, int]]:
        """By whom and when (Unix milliseconds) it was cosigned, the log's owner apart. Looked at once."""
        if self._seen is None:
            found = {
                (one.witness.raw, one.time_s * 1000)
                for copy in self.copies
                for one in cosignatures_of(copy.checkpoint)
                if one.witness.raw != self.log_key
            }
            self._seen = sorted(found)
        return self._seen

    @property
    def witnesses(self) -> int:
        """How many peers beside the owner."""
        return len({witness for witness, _ in self.seen})


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
    trees = _trees_of(attachments)
    sizes = {tree.size for tree in trees}
    by_root: dict[tuple[int, bytes], list[Tree]] = defaultdict(list)
    for tree in trees:
        by_root[tree.size, tree.first.checkpoint.root].append(tree)
    parties = {key for book in books for key in roles_of(book.channel.message).values()}
    parties |= {held.message.provider for held in offers.values()}
    clients = {book.channel.message.client for book in books}
    forked = _judge_roots(case, trees, clients)
    records = _loggable(case, books, offers) if attachments.proofs else {}
    logged: set[tuple[bytes, bytes]] = set()
    leaves: dict[tuple[bytes, int], tuple[HeldProof, Tree]] = {}
    for proof_id in sorted(attachments.proofs):
        proof = attachments.proofs[proof_id]
        found = _borne_out(case, proof, by_root, sizes)
        # Anybody can sign the root of another's tree: what is no party's log shows nothing, however many there are.
        for tree in [tree for tree in found if tree.log_key in parties] or found[:1]:
            logged.add((tree.log_key, proof.proof.record_id))
            first, of = leaves.setdefault((tree.log_key, proof.proof.leaf_index), (proof, tree))
            if first.proof.entry != proof.proof.entry and tree.log_key not in forked:
                forked.add(tree.log_key)
                sentence = f"two different entries as its leaf {proof.proof.leaf_index}."
                _report_fork(case, of, tree, sentence, clients, [first.places[0], proof.places[0]])
        if found and proof.proof.record_id in records:
            _judge_logged(case, proof, found, *records[proof.proof.record_id])
    if demands.any:
        _judge_demands(case, trees, books, logged, demands)


@dataclass(frozen=True, slots=True)
class ShownLog:
    """A log that a proof leads to."""

    log_key: bytes
    first_seen_ms: int
    """When a witness saw the tree for the first time; 0 if none did."""


ShownLogs = tuple[tuple[ShownLog, ...], ...]
"""For each proof of a record: the logs that it leads to."""


def logs_shown(attachments: Attachments) -> dict[bytes, ShownLogs]:
    """By record, the logs that proofs show it in."""
    logs: dict[tuple[int, bytes], tuple[ShownLog, ...]] = defaultdict(tuple)
    for tree in _trees_of(attachments):
        shown = ShownLog(tree.log_key, min((time_ms for _, time_ms in tree.seen), default=0))
        logs[tree.size, tree.first.checkpoint.root] += (shown,)
    single = {key: (shown_in,) for key, shown_in in logs.items()}  # shared: there may be many proofs of one tree
    found: dict[bytes, ShownLogs] = {}
    for held in attachments.proofs.values():
        of_proof = single.get((held.proof.tree_size, held.proof.root))
        if of_proof is not None:
            known = found.get(held.proof.record_id)
            found[held.proof.record_id] = of_proof if known is None else known + of_proof
    return found


def is_plainly_logged(logs: ShownLogs, channel: Channel, issued_ms: int) -> bool:
    """True if `judge_logs` has nothing to say of a receipt's proofs, there being any or none."""
    for of_proof in logs:
        own = [log for log in of_proof if log.log_key in (channel.provider, channel.client)]
        if not own or any(log.first_seen_ms and _is_after(issued_ms, log.first_seen_ms) for log in own):
            return False
    return True


def is_logged(logs: ShownLogs, log_key: bytes) -> bool:
    """True if some proof leads to the log."""
    return any(log.log_key == log_key for of_proof in logs for log in of_proof)


def _is_after(issued_ms: int, seen_ms: int) -> bool:
    return issued_ms - CLOCK_TOLERANCE_MS > seen_ms


def _trees_of(attachments: Attachments) -> list[Tree]:
    found: dict[tuple[int, bytes, bytes], Tree] = {}
    for checkpoint_id in sorted(attachments.checkpoints):
        held = attachments.checkpoints[checkpoint_id]
        key = held.checkpoint.size, held.checkpoint.log_key.raw, held.checkpoint.root
        found.setdefault(key, Tree([])).copies.append(held)
    return [found[key] for key in sorted(found)]


def _judge_roots(case: Case, trees: Sequence[Tree], clients: set[bytes]) -> set[bytes]:
    """Two roots of one size; the keys of the logs."""
    forked: set[bytes] = set()
    first: dict[tuple[bytes, int], Tree] = {}
    for tree in trees:
        other = first.setdefault((tree.log_key, tree.size), tree)
        if other is not tree and tree.log_key not in forked:
            forked.add(tree.log_key)
            _report_fork(case, other, tree, f"two different trees of {tree.size} leaves.", clients)
    return forked


def _report_fork(
    case: Case, one: Tree, other: Tree, sentence: str, clients: set[bytes], more: Iterable[Place] = ()
) -> None:
    role = Role.CLIENT if one.log_key in clients else Role.PROVIDER
    places = tuple(dict.fromkeys([one.places[0], other.places[0], *more]))
    sentence = f"The log {one.first.checkpoint.origin} signed {sentence}"
    signers = {role: one.log_key}
    case.docket.add(Draft("log-forked", sentence, places, record_id=one.first.record_id, signers=signers))


def _borne_out(
    case: Case, proof: HeldProof, by_root: Mapping[tuple[int, bytes], list[Tree]], sizes: set[int]
) -> list[Tree]:
    """The trees that the proof leads to; that there is none is reported."""
    said = proof.proof
    why = said.why or "it leads to none of their roots."
    found = by_root.get((said.tree_size, said.root), [])
    what = f"the proof for leaf {said.leaf_index} of {said.tree_size}"
    if said.tree_size not in sizes:
        bundles = tuple(sorted({place.bundle for place in proof.places}))
        sentence = f"No bundle holds the checkpoint that {what} leads to."
        draft = Draft("record-missing", sentence, tuple(proof.places), record_id=proof.record_id, holders=bundles)
        stands = "It stands where a proof's checkpoint is missing."
        case.docket.add_absence(Absence(CHECKPOINT_TYPE, (), "the checkpoint", draft, bundles, proof=stands))
    elif not found:
        sentence = f"{what[0].upper()}{what[1:]} does not hold for any checkpoint of that size: {why}"
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


def _judge_logged(case: Case, proof: HeldProof, trees: Sequence[Tree], held: Held[Any], book: Book | None) -> None:
    if isinstance(held.message, Card):
        return  # an operator's nodes log its cards, each in its own log
    keys = {held.message.provider} if book is None else set(roles_of(book.channel.message).values())
    own = [tree for tree in trees if tree.log_key in keys]
    if not own:
        origin = trees[0].first.checkpoint.origin
        sentence = f"The proof for {held} leads to the log {origin}, which is no party's."
        channel = book.id if book is not None else b""
        _spoilt(case, proof, Draft("wrong-origin", sentence, tuple(proof.places), None, proof.record_id, channel))
        return
    if book is None:
        return
    issued_ms: int = getattr(held.message, "issued_ms", 0)
    seen_ms = [time_ms for tree in own for _, time_ms in tree.seen]
    if seen_ms and _is_after(issued_ms, min(seen_ms)):
        sentence = f"By its time {held} comes after a checkpoint that it is in, as a witness saw it."
        case.report(book, held, Fault("after-checkpoint", sentence))


def _judge_demands(
    case: Case, trees: Sequence[Tree], books: Sequence[Book], logged: set[tuple[bytes, bytes]], demands: LogDemands
) -> None:
    latest: dict[bytes, Tree] = {}
    for tree in trees:  # by size; of one size there are two only in a fork
        latest[tree.log_key] = tree
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

    more = book.elided.unlogged
    for number in sorted(book.receipts):
        held = book.receipts[number]
        if not held.claims(Role.CLIENT) or (provider, held.record_id) in logged:
            continue
        more -= held.message.order_number in book.elided.counted
        draft = Draft("not-logged", phrase([str(held)], 0), held.places[:1], None, held.record_id, book.id)
        absence = Absence(INCLUSION_PROOF_TYPE, (held.record_id,), str(held), draft, book.bundles)
        absence.merge, absence.phrase = ("not-logged", book.id), phrase
        absence.proof = "It stands where a proof of inclusion is missing."
        case.docket.add_absence(absence)
    case.docket.add_more({("not-logged", book.id): more})


def _demand_witnesses(case: Case, book: Book, tree: Tree | None, wanted: int) -> None:
    if tree is None:
        sentence = f"No bundle holds a checkpoint of the provider's log; {wanted} witnesses are demanded."
        about = book.channel.places[:1], None, book.channel.record_id, book.id
        case.docket.add(Draft("too-few-witnesses", sentence, *about))
        return
    about = tree.places, None, tree.first.record_id, book.id
    if tree.witnesses < wanted:
        sentence = (
            f"Of the provider's checkpoint of {tree.size} {tree.witnesses} witnesses know; {wanted} are demanded."
        )
        case.docket.add(Draft("too-few-witnesses", sentence, *about))
    elif max(time_ms for _, time_ms in tree.seen) + STALE_MS + CLOCK_TOLERANCE_MS < case.now_ms:
        sentence = "No witness has seen the provider's latest checkpoint within the day before the audit."
        case.docket.add(Draft("checkpoint-stale", sentence, *about))
