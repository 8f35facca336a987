"""What libp2p logs, made fit for a program that serves strangers.

Nearly everything libp2p 0.8.1 logs, tracebacks and errors included, is set off by the other side: a normal close, a
failed dial, a peer that speaks another protocol. A peer must not be able to fill our log, so all of it is shown
only where the logger `p2pgrid.net.libp2p` is set to DEBUG. What goes wrong on our own side reaches the supervisor
as an exception, and is logged there.
"""

from __future__ import annotations

import logging

import libp2p.network.connection.swarm_connection as swarm_connection_module

_demoted = logging.getLogger("p2pgrid.net.libp2p")


class _Demote(logging.Handler):
    """Passes a record on as DEBUG."""

    def emit(self, record: logging.LogRecord) -> None:
        if _demoted.isEnabledFor(logging.DEBUG):
            record.levelno, record.levelname = logging.DEBUG, "DEBUG"
            record.name = f"{_demoted.name}.{record.name.removeprefix('libp2p.')}"
            _demoted.handle(record)


def quieten() -> None:
    """Demote libp2p's loggers, once for the process; safe to call again."""
    libp2p_logger = logging.getLogger("libp2p")
    libp2p_logger.handlers[:] = [_Demote()]
    libp2p_logger.propagate = False
    libp2p_logger.disabled = False
    libp2p_logger.setLevel(logging.WARNING)
    # This module logs through the root logger's own functions, which install a handler on the root where there is
    # none. A Logger has the same methods.
    swarm_connection_module.logging = logging.getLogger(swarm_connection_module.__name__)
