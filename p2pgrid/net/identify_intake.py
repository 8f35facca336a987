"""What peers say of themselves over identify and identify/push, cut to size before libp2p 0.8.1 keeps it.

| fault | here |
|---|---|
| a message may have 1 MiB, and all in it is kept, for 1,000 peers | 16 KiB, of them 32 addresses and 256 names |
| a peer may push another as often as it likes, and each costs a signature check | `doors.py`, `yamux_frames.Throttle` |

(https://github.com/libp2p/specs/blob/master/identify/README.md.)
"""

from __future__ import annotations

import functools
from typing import Any, Final

import libp2p.host.basic_host as basic_host_module
import libp2p.identity.identify_push.identify_push as push_module
from libp2p.identity.update import update_peerstore_from_identify
from libp2p.utils.varint import read_length_prefixed_protobuf

MAX_MESSAGE_BYTES: Final = 16 * 1024
MAX_ADDRESSES: Final = 32
MAX_ADDRESS_BYTES: Final = 256
MAX_PROTOCOLS: Final = 256
MAX_RECORD_BYTES: Final = 4096


async def keep_identify(peerstore: Any, peer_id: Any, message: Any) -> None:
    """Put into the peerstore what fits. What is longer than any honest peer's is dropped without a word."""
    if message.ByteSize() > MAX_MESSAGE_BYTES:
        return
    addresses = [raw for raw in message.listen_addrs if len(raw) <= MAX_ADDRESS_BYTES][:MAX_ADDRESSES]
    del message.listen_addrs[:]
    message.listen_addrs.extend(addresses)
    del message.protocols[MAX_PROTOCOLS:]
    if len(message.signedPeerRecord) > MAX_RECORD_BYTES:
        message.ClearField("signedPeerRecord")
    await update_peerstore_from_identify(peerstore, peer_id, message)


def install() -> None:
    """Have libp2p use it: both modules name the functions themselves. Safe to call again."""
    read = functools.partial(read_length_prefixed_protobuf, max_length=MAX_MESSAGE_BYTES)
    for module in (basic_host_module, push_module):
        module.read_length_prefixed_protobuf = read
        module.update_peerstore_from_identify = keep_identify
