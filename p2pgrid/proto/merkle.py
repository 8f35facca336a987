"""The Merkle tree of a transparency log: RFC 6962, section 2.1, with SHA-256 (docs/spec/log.md).

Nothing here needs the tree in memory. Whoever has one gives a `HashAt`: the hash of the complete subtree of
`2**level` leaves that begins at leaf `index * 2**level`. Proofs are sequences of 32-byte hashes, from the leaves to the
root. What a peer sent is verified by `verify_inclusion` and `verify_consistency`, which raise InvalidRecord.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from p2pgrid.errors import InvalidRecord

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
MAX_SIZE: Final = 2**53
"""Most leaves of a log: a number that every JSON reader holds."""
MAX_PROOF_HASHES: Final = 63

HashAt = Callable[[int, int], bytes]
"""(level, index) -> the hash of leaves [index * 2**level, (index + 1) * 2**level), which all exist."""
Node = tuple[int, int]
"""A complete subtree: (level, index)."""

_sha256 = hashlib.sha256


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf."""
    return _sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return _sha256(b"\x01" + left + right).digest()


def subtrees(begin: int, end: int) -> list[Node]:
    """The complete subtrees that leaves [begin, end) fall into, left to right.

    `begin` is 0, or a multiple of a power of two that is not below `end - begin`: a range that is a node of some tree.
    """
    nodes: list[Node] = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        nodes.append((level, begin >> level))
        begin += 1 << level
    return nodes


def fold(hashes: Sequence[bytes]) -> bytes:
    """The root over the hashes of complete subtrees, left to right: what is smaller hangs on the right."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


def root_at(hash_at: HashAt, size: int) -> bytes:
    """The root of the tree of the first `size` leaves."""
    return _range_hash(hash_at, 0, size)


def inclusion_nodes(index: int, size: int) -> list[tuple[int, int]]:
    """The ranges of leaves whose hashes prove that leaf `index` is in the tree of `size`, from the leaf to the root."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    ranges: list[tuple[int, int]] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    return ranges[::-1]


def inclusion_proof(hash_at: HashAt, index: int, size: int) -> tuple[bytes, ...]:
    """RFC 6962, section 2.1.1: proof that leaf `index` is in the tree of `size`. ValueError unless index < size."""
    return tuple(_range_hash(hash_at, begin, end) for begin, end in inclusion_nodes(index, size))


def prefix_proof(hash_at: HashAt, old_size: int, new_size: int) -> tuple[bytes, ...]:
    """A consistency proof whose first hash, the one that both trees begin from, is never left out.

    So it states both roots by itself (`prefix_roots`): whoever has a signed root of `new_size` can show what the root
    of `old_size` was in that tree. ValueError unless 0 < old_size < new_size.
    """
    if not 0 < old_size < new_size:
        raise ValueError(f"no tree of {old_size} leaves begins a tree of {new_size}")
    ranges: list[tuple[int, int]] = []
    begin, end = 0, new_size
    while old_size != end:
        middle = begin + _split(end - begin)
        if old_size <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((begin, middle))
            begin = middle
    return tuple(_range_hash(hash_at, first, last) for first, last in [(begin, end), *ranges[::-1]])


def consistency_proof(hash_at: HashAt, old_size: int, new_size: int) -> tuple[bytes, ...]:
    """RFC 6962, section 2.1.2: proof that the tree of `new_size` begins with that of `old_size`; empty for 0 or equal.

    ValueError if the old one is larger.
    """
    if old_size > new_size:
        raise ValueError(f"a tree of {old_size} leaves does not begin one of {new_size}")
    if old_size in (0, new_size):
        return ()
    proof = prefix_proof(hash_at, old_size, new_size)
    return proof[1:] if _is_power_of_two(old_size) else proof


def prefix_roots(old_size: int, new_size: int, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The roots of both sizes as a `prefix_proof` states them. Raises InvalidRecord (`bad-proof`): a wrong length."""
    if not 0 < old_size < new_size <= MAX_SIZE:
        raise InvalidRecord("bad-proof", f"no tree of {old_size} leaves begins a tree of {new_size}.")
    _check_hashes(proof)
    # RFC 9162, section 2.1.4.2, with the first hash always given.
    old_node, new_node = old_size - 1, new_size - 1
    while old_node & 1:
        old_node >>= 1
        new_node >>= 1
    if not proof:
        raise _wrong_length(proof)
    old_root = new_root = proof[0]
    for sibling in proof[1:]:
        if new_node == 0:
            raise _wrong_length(proof)
        if old_node & 1 or old_node == new_node:
            old_root = node_hash(sibling, old_root)
            new_root = node_hash(sibling, new_root)
            while old_node and not old_node & 1:
                old_node >>= 1
                new_node >>= 1
        else:
            new_root = node_hash(new_root, sibling)
        old_node >>= 1
        new_node >>= 1
    if new_node != 0:
        raise _wrong_length(proof)
    return old_root, new_root


def verify_consistency(old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Check that the tree (new_size, new_root) begins with (old_size, old_root).

    Raises InvalidRecord (`bad-proof`).
    """
    if not 0 <= old_size <= new_size:
        raise InvalidRecord("bad-proof", f"a tree of {old_size} leaves does not begin one of {new_size}.")
    if old_size in (0, new_size):
        if proof:
            raise _wrong_length(proof)
        if old_root != (new_root if old_size else EMPTY_ROOT):
            raise InvalidRecord("bad-proof", f"two roots are given for the tree of {old_size} leaves.")
        return
    whole = (old_root, *proof) if _is_power_of_two(old_size) else tuple(proof)
    if prefix_roots(old_size, new_size, whole) != (old_root, new_root):
        raise InvalidRecord("bad-proof", f"the tree of {new_size} leaves does not begin with that of {old_size}.")


def root_from_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root that an inclusion proof leads to from a leaf's hash. Raises InvalidRecord (`bad-proof`)."""
    if not 0 <= index < size <= MAX_SIZE:
        raise InvalidRecord("bad-proof", f"leaf {index} is not in a tree of {size}.")
    _check_hashes(proof)
    # RFC 9162, section 2.1.3.2.
    node, last, root = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise _wrong_length(proof)
        if node & 1 or node == last:
            root = node_hash(sibling, root)
            while node and not node & 1:
                node >>= 1
                last >>= 1
        else:
            root = node_hash(root, sibling)
        node >>= 1
        last >>= 1
    if last != 0:
        raise _wrong_length(proof)
    return root


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf with this hash is number `index` of the tree (size, root). Raises InvalidRecord."""
    if root_from_inclusion(leaf, index, size, proof) != root:
        raise InvalidRecord("bad-proof", f"the proof does not lead to the root of the tree of {size} leaves.")


class CompactRange:
    """The right edge of a growing tree: the hashes of its complete subtrees, at most 53. Appending costs no more than
    that, and one hash on average."""

    __slots__ = ("_edge", "size")

    def __init__(self, size: int = 0, edge: Sequence[bytes] = ()) -> None:
        """`edge` are the hashes of `subtrees(0, size)`."""
        if len(edge) != size.bit_count():
            raise ValueError(f"a tree of {size} has {size.bit_count()} complete subtrees, {len(edge)} were given")
        self.size = size
        self._edge = list(edge)

    @classmethod
    def of(cls, hash_at: HashAt, size: int) -> CompactRange:
        """The edge of a tree that is stored elsewhere."""
        return cls(size, [hash_at(level, index) for level, index in subtrees(0, size)])

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf's hash. Returns the subtrees that it completes: (level, index, hash), the leaf itself first."""
        edge, index, level, node = self._edge, self.size, 0, leaf
        completed = [(0, index, leaf)]
        while index & 1:
            node = node_hash(edge.pop(), node)
            level += 1
            index >>= 1
            completed.append((level, index, node))
        edge.append(node)
        self.size += 1
        return completed

    @property
    def root(self) -> bytes:
        """The root of the tree as it is."""
        return fold(self._edge)


def _range_hash(hash_at: HashAt, begin: int, end: int) -> bytes:
    return fold([hash_at(level, index) for level, index in subtrees(begin, end)])


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _is_power_of_two(value: int) -> bool:
    return value & (value - 1) == 0


def _check_hashes(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_PROOF_HASHES + 1 or any(len(one) != HASH_BYTES for one in proof):
        raise InvalidRecord("bad-proof", f"a proof has at most {MAX_PROOF_HASHES} hashes of {HASH_BYTES} bytes.")


def _wrong_length(proof: Sequence[bytes]) -> InvalidRecord:
    return InvalidRecord("bad-proof", f"a proof between these sizes does not have {len(proof)} hashes.")
