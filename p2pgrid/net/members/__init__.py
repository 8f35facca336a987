"""Closed networks over libp2p (docs/spec/network.md): the gate before every protocol, and the proofs that open it."""
