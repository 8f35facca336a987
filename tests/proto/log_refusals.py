"""Cases of log.json and merkle.json that a reader refuses (docs/spec/log.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from p2pgrid.proto.checkpoint import (
    Checkpoint,
    SignedCheckpoint,
    cosign,
    cosignatures_of,
    origin_of,
    sign_checkpoint,
    verify_checkpoint,
)
from p2pgrid.proto.fork import ForkProof, verify_fork
from p2pgrid.proto.merkle import inclusion_proof, leaf_hash, prefix_roots, root_from_inclusion
from p2pgrid.proto.note import Note, sign_text
from p2pgrid.proto.tiles import parse_tile_path
from tests.factories import CLIENT, PROVIDER, digest, secret_key
from tests.proto.record_refusals import code_of
from tests.proto.squeezed import squeezed
from tests.proto.trees import LEAF_INPUTS, checkpoint_of, hash_at_of_entries


def refused_notes(whole: SignedCheckpoint) -> list[dict[str, Any]]:
    """Checkpoints as bytes; `cosigners` is how many fit, where the log's own signature does."""
    origin, good = whole.origin, whole.note.signatures[0]
    bad = replace(good, signature=good.signature[:-1] + bytes([good.signature[-1] ^ 1]))
    text = whole.note.text
    stranger = sign_text(text, origin_of(CLIENT.public_key), CLIENT)
    fits = cosign(whole, CLIENT, 1_800_000_000)
    later = replace(fits, signature=(1_800_000_001).to_bytes(8) + fits.signature[8:])
    far = cosign(whole, CLIENT, 2**63)

    def signed(changed: str) -> Note:
        return Note(changed, (sign_text(changed, origin, PROVIDER),))

    lines = text.splitlines()
    other = Checkpoint("example.com/log", 3, digest("root")).text()
    nobody = Checkpoint("p2pgrid/12D3KooW", 3, digest("root")).text()
    raw = whole.note.to_bytes()
    notes: list[tuple[str, bytes]] = [
        ("as it should be", raw),
        ("the log's signature does not fit", Note(text, (bad,)).to_bytes()),
        ("two signatures of the log, one of them does not fit", Note(text, (good, bad)).to_bytes()),
        ("another key hash: nobody's", Note(text, (replace(good, key_id=bytes(4)),)).to_bytes()),
        ("signed by another alone", Note(text, (stranger,)).to_bytes()),
        ("a stranger's line beside it", Note(text, (stranger, good)).to_bytes()),
        ("a cosignature", Note(text, (good, fits)).to_bytes()),
        ("a cosignature that does not fit", Note(text, (good, later)).to_bytes()),
        ("a cosignature twice", Note(text, (good, fits, replace(fits))).to_bytes() + f"{fits.line()}\n".encode()),
        ("a cosignature of the year 292277026596", Note(text, (good, far)).to_bytes()),
        ("another origin", Note(other, (sign_text(other, "example.com/log", PROVIDER),)).to_bytes()),
        ("an origin that names no key", Note(nobody, (sign_text(nobody, "p2pgrid/12D3KooW", PROVIDER),)).to_bytes()),
        *(
            (f"the size {size!r}", signed(f"{origin}\n{size}\n{lines[2]}\n").to_bytes())
            for size in ("0", "011", "+11", "-1", "", str(2**53), str(2**53 + 1), "1e1")
        ),
        ("a root of 31 bytes", signed(f"{origin}\n11\n{'AAAA' * 10}AA==\n").to_bytes()),
        ("a root that is no base64", signed(f"{origin}\n11\n{lines[2][:-1]}\n").to_bytes()),
        ("two lines", signed(f"{origin}\n11\n").to_bytes()),
        ("an extension line", signed(f"{text}more\n").to_bytes()),
        ("16 extension lines", signed(text + "x\n" * 16).to_bytes()),
        ("17 extension lines", signed(text + "x\n" * 17).to_bytes()),
        ("no signature", text.encode() + b"\n"),
        ("no blank line", text.encode()),
        ("no line feed at the end", raw[:-1]),
        ("a control character", raw.replace(b"\n11\n", b"\n11\r\n")),
        ("no UTF-8", raw.replace(b"p2pgrid", b"p2p\xffgrid", 1)),
        ("64 signatures", Note(text, (good,) * 64).to_bytes()),
        ("65 signatures", Note(text, (good,) * 65).to_bytes()),
        *((f"{size} bytes", _of_size(text, signed, size)) for size in (49_152, 49_153)),
    ]
    return [
        {
            "case": name,
            "note": squeezed(note),
            "code": code_of(lambda n=note: verify_checkpoint(n)),
            "cosigners": _cosigners(note),
        }
        for name, note in notes
    ]


def _of_size(text: str, signed: Callable[[str], Note], size: int) -> bytes:
    """A note with an extension line that makes it as long."""
    return signed(f"{text}{'x' * (size - len(signed(f'{text}x{chr(10)}').to_bytes()) + 1)}\n").to_bytes()


def _cosigners(note: bytes) -> int:
    return len(cosignatures_of(verify_checkpoint(note))) if not code_of(lambda: verify_checkpoint(note)) else 0


def refused_forks(whole: SignedCheckpoint, fork: ForkProof) -> list[dict[str, str]]:
    """What looks like a proof of a fork and is none."""
    smaller, larger = fork.smaller, fork.larger
    other = checkpoint_of([digest(f"elsewhere {n}") for n in range(13)], secret_key("another log"))
    changed = (digest("another"), *fork.hashes[1:])
    honest = sign_checkpoint(smaller.size, prefix_roots(smaller.size, larger.size, fork.hashes)[0], PROVIDER)
    proofs = [
        ("as it should be", fork),
        ("two checkpoints that say the same", replace(fork, smaller=whole, larger=whole, hashes=())),
        ("another log", replace(fork, larger=other)),
        ("another log with the same tree", replace(fork, larger=_by_another(larger))),
        ("the larger tree begins with the smaller one", replace(fork, smaller=honest, hashes=fork.hashes)),
        ("a hash changed", replace(fork, hashes=changed)),
        ("a hash too few", replace(fork, hashes=fork.hashes[:-1])),
        ("a hash too many", replace(fork, hashes=(*fork.hashes, digest("more")))),
        ("the two in the other order", replace(fork, smaller=larger, larger=smaller)),
        ("one size, with hashes", replace(fork, smaller=whole, larger=whole, hashes=fork.hashes)),
    ]
    told = [(name, proof.to_json()) for name, proof in proofs]
    read = msgspec.json.decode(fork.to_json())
    told += [
        ("another type", msgspec.json.encode({**read, "type": "p2pgrid/fork-proof/2"})),
        ("a field more", msgspec.json.encode({**read, "more": 1})),
    ]
    return [{"case": n, "proof": p.decode(), "code": code_of(lambda p=p: verify_fork(p))} for n, p in told]


def _by_another(checkpoint: SignedCheckpoint) -> SignedCheckpoint:
    return sign_checkpoint(checkpoint.size, checkpoint.root, secret_key("another log"))


def refused_paths() -> dict[str, str]:
    """Texts that are like paths of tiles, with the code."""
    texts = ("tile/0/000", "tile/6/000", "tile/7/000", "tile/00/000", "tile/0/x000/000", "tile/0/x001/000", "tile/0/1")
    texts += (
        "tile/0/x001000",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/-1/000",
        "tile/entries/000",
    )
    texts += ("tile/0/000/", "/tile/0/000", "tile/0/000.p/255", "tile/0/001/000")
    return {text: code_of(lambda t=text: parse_tile_path(t)) for text in texts}


def refused_inclusion() -> list[dict[str, Any]]:
    """Proofs of inclusion in the test tree that lead to no root, or to another."""
    hash_at = hash_at_of_entries(LEAF_INPUTS)
    proof = inclusion_proof(hash_at, 3, 7)
    more = digest("more")
    cases = [
        ("as it should be", 3, 7, proof),
        ("a hash too few", 3, 7, proof[:-1]),
        ("a hash too many", 3, 7, (*proof, more)),
        ("the last leaf of 7, a hash too many", 6, 7, (*inclusion_proof(hash_at, 6, 7), more)),
        ("leaf 7 of 7", 7, 7, proof),
        ("leaf 8 of 7", 8, 7, proof),
        ("another leaf", 2, 7, proof),
        ("another size", 3, 8, proof),
        ("one leaf", 0, 1, ()),
        ("one leaf, with a hash", 0, 1, (more,)),
        ("no leaf", 0, 0, ()),
    ]
    return [_inclusion(name, index, size, hashes) for name, index, size, hashes in cases]


def _inclusion(name: str, index: int, size: int, hashes: tuple[bytes, ...]) -> dict[str, Any]:
    leaf = leaf_hash(LEAF_INPUTS[3 if "leaf" not in name or "7" in name else 0])
    code = code_of(lambda: root_from_inclusion(leaf, index, size, hashes))
    root = "" if code else root_from_inclusion(leaf, index, size, hashes).hex()
    shown = [one.hex() for one in hashes]
    return {
        "case": name,
        "leaf_hash": leaf.hex(),
        "index": index,
        "size": size,
        "proof": shown,
        "code": code,
        "root": root,
    }
