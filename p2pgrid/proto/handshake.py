"""How the two ends of a link come to know one another (docs/spec/link.md).

The road (TLS or Noise) has proven the listener's key to the dialler before a `Link` exists. The rest of the handshake:

    dialler                              listener
    AWAIT_HELLO  <-- HELLO nonce ------- AWAIT_PROOF
    AWAIT_READY  --- PROOF key, sig ---> (verified: `Proved`; the owner calls `accept` or `goaway`)
    OPEN         <-- READY ------------- OPEN

A dialler that has a link already and wants the road for that answers with CLAIM instead of PROOF (`Claimed`). Between
members of a closed network MEMBER stands before PROOF, and another before READY: what a side shows of its membership,
made by its owner, who judges the other side's (`credentials`).

The dialler sends nothing between PROOF and READY. Its first order would save a round trip, once per link; but
links are dialled before they are needed, and a dialler that is refused has then asked for nothing, so that it
may ask elsewhere without a doubt.
"""

from __future__ import annotations

from p2pgrid.errors import Refused
from p2pgrid.proto import frame
from p2pgrid.proto.frame import Kind, Terms
from p2pgrid.proto.keys import PublicKey, SecretKey


class DiallerHandshake:
    """The side that dialled: it knows the listener, and proves its own key."""

    def __init__(self, secret_key: SecretKey, provider: PublicKey, claimed: bytes | None = None) -> None:
        """`claimed`: the nonce of the link that the road is for, if it is for one that there is already."""
        self._secret_key: SecretKey | None = secret_key
        self._provider = provider
        self._claimed = claimed
        self.nonce = b""
        """The listener's, once its HELLO is there."""

    def answer(self, hello: bytes, own_terms: Terms) -> tuple[Kind, bytes, Terms]:
        """The PROOF or CLAIM that answers the listener's HELLO, once, and the listener's terms.

        Raises ProtocolViolation, and Refused (`version`).
        """
        assert self._secret_key is not None, "one HELLO is answered"
        _check_version(hello)
        self.nonce, terms = frame.parse_hello(hello)
        key, self._secret_key = self._secret_key, None
        if self._claimed is not None:
            return Kind.CLAIM, frame.encode_claim(key, self._provider, self.nonce, self._claimed), terms
        return Kind.PROOF, frame.encode_proof(key, self._provider, self.nonce, own_terms), terms


class ListenerHandshake:
    """The side that was dialled: it asks for a proof over its own nonce."""

    def __init__(self, own_key: PublicKey, nonce: bytes) -> None:
        """`nonce` is 32 fresh random bytes, never used for another link."""
        if len(nonce) != frame.NONCE_BYTES:
            raise ValueError(f"a nonce has {frame.NONCE_BYTES} bytes, this has {len(nonce)}")
        self._own_key = own_key
        self.nonce = nonce

    def hello(self, own_terms: Terms) -> bytes:
        """The HELLO."""
        return frame.encode_hello(self.nonce, own_terms)

    def verify(self, proof: bytes) -> tuple[PublicKey, Terms]:
        """Who dialled, and its terms. Raises ProtocolViolation, and Refused (`version`)."""
        _check_version(proof)
        return frame.verify_proof(proof, self.nonce, self._own_key)

    def verify_claim(self, claim: bytes) -> tuple[PublicKey, bytes]:
        """Who wants the road, and for which link. Raises ProtocolViolation, and Refused (`version`)."""
        _check_version(claim)
        return frame.verify_claim(claim, self.nonce, self._own_key)


def _check_version(payload: bytes) -> None:
    version = frame.parse_version(payload)
    if version != frame.LINK_VERSION:
        text = f"the peer speaks link version {version}, this side {frame.LINK_VERSION}."
        raise Refused("version", text, hint="Update the older of the two programs.")
