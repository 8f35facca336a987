"""A client on py-libp2p as it comes: asks for a page over `/http/1.1`, ends its side, and prints what comes.

    python -m tests.net.stock_http MULTIADDR PATH

Run as a process, so that none of our patches is in it. Other implementations end their side before the answer too.
"""

from __future__ import annotations

import sys

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

PROTOCOL = "/http/1.1"
SEED = b"s" * 32


async def main() -> None:
    keys = create_new_key_pair(SEED)
    noise = NoiseTransport(keys, noise_privkey=create_new_x25519_key_pair().private_key)
    host = new_host(key_pair=keys, sec_opt={NOISE_ID: noise})
    info = info_from_p2p_addr(Multiaddr(sys.argv[1]))
    with trio.fail_after(30):
        async with host.run(listen_addrs=[]):
            await host.connect(info)
            stream = await host.new_stream(info.peer_id, [PROTOCOL])
            await stream.write(f"GET {sys.argv[2]} HTTP/1.1\r\nHost: {info.peer_id}\r\n\r\n".encode())
            await stream.close_write()
            answer = b""
            try:
                while data := await stream.read(65_536):
                    answer += data
            except StreamEOF:
                pass
            sys.stdout.buffer.write(answer)
            sys.stdout.flush()


trio.run(main)
