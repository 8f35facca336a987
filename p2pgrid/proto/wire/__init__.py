"""What travels on a link between a client and a provider (docs/spec/session.md, section 2).

Every exchange has a stream of its own, which the client opens. Its messages are numbered in `kinds`. Payloads are
signed records in wire form, or one of the unsigned MessagePack arrays that the modules here define, by subject; both
are refused unless they are canonical.
"""
