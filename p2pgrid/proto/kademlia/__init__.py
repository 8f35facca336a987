"""Kademlia's rules without a network: places, the routing table, look-ups, provider records, whom to believe.

Maymounkov and Mazieres, "Kademlia" (2002), with the disjoint paths of Baumgart and Mies, "S/Kademlia" (2007), and what
docs/spec/discovery.md adds. `net/dht.py` drives this over libp2p; `scripts/bench/dht` over a simulated wire.
"""

from typing import Final

PLACE_BITS: Final = 256
REPLICATION: Final = 20
"""k: how many servers hold a record, how many nodes a bucket has, how many an answer names."""
PER_GROUP: Final = 2
"""Nodes of one IP prefix that a bucket, or the k closest of a look-up, have room for while others want in."""
MAX_REPLICAS: Final = 8
"""Places of a key."""
