"""RFC 6962: published answers, the recursive definition, and proofs that are bent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import InvalidRecord
from p2pgrid.proto.merkle import (
    EMPTY_ROOT,
    MAX_SIZE,
    CompactRange,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    prefix_proof,
    prefix_roots,
    root_at,
    verify_consistency,
    verify_inclusion,
)
from tests.proto.trees import LEAF_INPUTS, entries_of, hash_at_of_entries, tree_hash

ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""Published: transparency-dev/merkle, testonly/constants.go, RootHashes()."""
INCLUSION = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (0, 1): [],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): INCLUSION[0, 8],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
"""Published: the same project, testonly/reference_test.go."""

ENTRIES = entries_of(70)
HASH_AT = hash_at_of_entries(ENTRIES)
ROOT_OF = [tree_hash(ENTRIES[:size]) for size in range(71)]
sizes = st.integers(1, 70)


def unhex(texts: list[str]) -> tuple[bytes, ...]:
    return tuple(map(bytes.fromhex, texts))


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size: int) -> None:
    assert root_at(hash_at_of_entries(LEAF_INPUTS), size).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_published_inclusion_proofs(index: int, size: int) -> None:
    proof = inclusion_proof(hash_at_of_entries(LEAF_INPUTS), index, size)
    assert proof == unhex(INCLUSION[index, size])
    verify_inclusion(leaf_hash(LEAF_INPUTS[index]), index, size, proof, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "new"), CONSISTENCY)
def test_published_consistency_proofs(old: int, new: int) -> None:
    proof = consistency_proof(hash_at_of_entries(LEAF_INPUTS), old, new)
    assert proof == unhex(CONSISTENCY[old, new])
    verify_consistency(old, new, proof, bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[new]))


def test_every_inclusion_proof_holds_and_for_no_other_leaf() -> None:
    for size in range(1, 40):
        for index in range(size):
            proof = inclusion_proof(HASH_AT, index, size)
            verify_inclusion(leaf_hash(ENTRIES[index]), index, size, proof, ROOT_OF[size])
            for other_leaf, other_index, other_size in ((index + 1, index, size), (index, (index + 1) % size, size)):
                if (other_leaf, other_index) != (index, index):
                    with pytest.raises(InvalidRecord):
                        verify_inclusion(
                            leaf_hash(ENTRIES[other_leaf]), other_index, other_size, proof, ROOT_OF[other_size]
                        )


def test_every_consistency_proof_holds_and_states_both_roots() -> None:
    for new in range(1, 40):
        for old in range(new + 1):
            proof = consistency_proof(HASH_AT, old, new)
            verify_consistency(old, new, proof, ROOT_OF[old], ROOT_OF[new])
            if 0 < old < new:
                assert prefix_roots(old, new, prefix_proof(HASH_AT, old, new)) == (ROOT_OF[old], ROOT_OF[new])


@given(sizes, sizes, st.data())
def test_a_bent_consistency_proof_fails(one: int, other: int, data: st.DataObject) -> None:
    old, new = sorted((one, other))
    proof = list(consistency_proof(HASH_AT, old, new))
    old_root, new_root = ROOT_OF[old], ROOT_OF[new]
    what = data.draw(
        st.sampled_from(["old root", "new root", "longer", *(["hash", "shorter", "short hash"] if proof else [])])
    )
    if what == "old root":
        old_root = ROOT_OF[0]
    elif what == "new root":
        new_root = ROOT_OF[0]
    elif what == "longer":
        proof.append(bytes(32))
    elif what == "shorter":
        proof.pop(data.draw(st.integers(0, len(proof) - 1)))
    else:
        at = data.draw(st.integers(0, len(proof) - 1))
        proof[at] = proof[at][:31] if what == "short hash" else bytes([proof[at][0] ^ 1]) + proof[at][1:]
    with pytest.raises(InvalidRecord):
        verify_consistency(old, new, proof, old_root, new_root)


@given(st.integers(-1, MAX_SIZE + 1), st.integers(-1, MAX_SIZE + 1), st.lists(st.binary(max_size=33), max_size=70))
def test_hostile_proofs_raise_nothing_else(one: int, other: int, proof: list[bytes]) -> None:
    for check in (
        lambda: verify_consistency(one, other, proof, bytes(32), bytes(32)),
        lambda: verify_inclusion(bytes(32), one, other, proof, bytes(32)),
        lambda: prefix_roots(one, other, proof),
    ):
        try:
            check()
        except InvalidRecord as error:
            assert error.code == "bad-proof"


@given(st.integers(0, 70), st.integers(0, 70))
def test_a_growing_edge_is_the_tree(begin: int, end: int) -> None:
    begin, end = sorted((begin, end))
    edge = CompactRange.of(HASH_AT, begin)
    assert edge.root == ROOT_OF[begin]
    for size in range(begin, end):
        for level, index, node in edge.append(leaf_hash(ENTRIES[size])):
            assert node == HASH_AT(level, index)
        assert edge.root == ROOT_OF[size + 1]


def test_an_empty_tree() -> None:
    assert CompactRange().root == EMPTY_ROOT == ROOT_OF[0]
    verify_consistency(0, 5, (), EMPTY_ROOT, ROOT_OF[5])
    for wrong in ((0, 5, (), ROOT_OF[1]), (0, 5, (bytes(32),), EMPTY_ROOT)):
        with pytest.raises(InvalidRecord):
            verify_consistency(*wrong, ROOT_OF[5])


def test_asking_for_what_cannot_be() -> None:
    for wrong in (
        lambda: inclusion_proof(HASH_AT, 5, 5),
        lambda: consistency_proof(HASH_AT, 5, 4),
        lambda: prefix_proof(HASH_AT, 0, 4),
        lambda: CompactRange(3, [bytes(32)]),
    ):
        with pytest.raises(ValueError, match=r"."):
            wrong()
