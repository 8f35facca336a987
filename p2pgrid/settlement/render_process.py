"""The process that draws and validates invoices: asks on standard input, answers on standard output (`rendering`)."""

from __future__ import annotations

import contextlib
import signal
import sys

from p2pgrid.settlement.rendering import serve


def main() -> None:
    """Until standard input ends, which it does with the node."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's: it ends us when it has ended

    def write(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer.read, write)


if __name__ == "__main__":
    main()
