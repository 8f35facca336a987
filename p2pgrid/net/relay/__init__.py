"""The way to a peer that nobody can dial: circuits through a relay (docs/spec/relay.md).

A relay (`hop`) gives *reservations* to peers that nobody can dial, and joins streams to *circuits* between them and
who asks for them, as libp2p's circuit relay v2 specifies. A peer with a reservation (`keeper`) is reached at a circuit
address; whoever dials it (`dialler`) has an ordinary connection in the end, Noise and all, of which the relay sees
sizes and times and nothing more.
"""
