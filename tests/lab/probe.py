"""A program for the inside of a namespace: who answers there, and as whom one is seen. Standard library alone.

probe.py listen PORT                         say "ready", then tell everybody who calls as whom he is seen
probe.py call HOST PORT [OWN_PORT]           one call: "seen ADDRESS PORT", "refused", "unreachable" or "silence"
probe.py door SOCKET PORT                    say "ready", then pass a Unix socket's connections on to 127.0.0.1:PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
import time

SILENCE_S = 1.0
ANSWER_S = 10.0


def main(what: str, *arguments: str) -> None:
    if what == "listen":
        listen(int(arguments[0]))
    elif what == "call":
        print(call(arguments[0], int(arguments[1]), int(arguments[2]) if arguments[2:] else 0))
    elif what == "count":
        count(int(arguments[0]))
    elif what == "pour":
        pour(arguments[0], int(arguments[1]), int(arguments[2]))
    else:
        asyncio.run(door(arguments[0], int(arguments[1])))


def listen(port: int) -> None:
    with socket.create_server(("0.0.0.0", port), reuse_port=True) as server:
        print("ready", flush=True)
        while True:
            connection, (host, seen_port) = server.accept()
            with connection:
                connection.sendall(f"seen {host} {seen_port}".encode())


def call(host: str, port: int, own_port: int) -> str:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.settimeout(SILENCE_S)
        connection.bind(("0.0.0.0", own_port))
        try:
            connection.connect((host, port))
            connection.settimeout(ANSWER_S)
            return connection.makefile().read()
        except TimeoutError:
            return "silence"
        except ConnectionRefusedError:
            return "refused"
        except OSError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.ENETUNREACH):
                raise
            return "unreachable"


def count(port: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as receiver:
        receiver.bind(("0.0.0.0", port))
        receiver.settimeout(ANSWER_S)
        print("ready", flush=True)
        n = 0
        with contextlib.suppress(TimeoutError):
            while True:
                receiver.recv(64)
                receiver.settimeout(SILENCE_S)
                n += 1
        print(n)


def pour(host: str, port: int, n: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for _ in range(n):
            sender.sendto(b"x", (host, port))
            time.sleep(0.001)


async def door(path: str, port: int) -> None:
    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(inner_writer):
                await asyncio.gather(pass_on(reader, inner_writer), pass_on(inner_reader, writer))

    server = await asyncio.start_unix_server(accept, path)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
