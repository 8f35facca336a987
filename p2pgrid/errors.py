"""Every error of p2pgrid, branched by what the caller does about it.

A message says what came, what was expected, and what to do next. `hint` carries the next step apart from the
fact, so that a program can show one and a person both.

    P2pgridError
    |- UsageError          the person at the keyboard mends a flag, a file or the configuration
    |- LocalError          this machine must be mended (disk full, port in use, engine not installed); retry after
    |- RemoteError         the other side: choose another peer, or wait
    |  |- Unreachable        nobody answered there
    |  |- Refused            the peer answered with a refusal that carries a code
    |  `- ProtocolViolation  the peer broke the rules: drop it, and keep the evidence
    `- InvalidRecord       signed bytes that prove nothing: never act on them
"""

from __future__ import annotations


class P2pgridError(Exception):
    """Root of all errors that p2pgrid raises on purpose.

    `exit_code` is what the command line ends with when nothing handles the error.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip() if self.hint else self.message


class UsageError(P2pgridError):
    """A flag, a file or the configuration is wrong; the person who runs the command can mend it."""

    exit_code = 2


class LocalError(P2pgridError):
    """This machine cannot do it now: disk full, port in use, engine missing. Nothing was lost; mend and retry."""

    exit_code = 3


class LedgerError(LocalError):
    """The ledger could not make a record durable. The effect that depended on it did not happen."""


class EngineError(LocalError):
    """The inference engine failed, is missing, or does not answer."""


class RemoteError(P2pgridError):
    """The other side is at fault or away: try another peer, or later."""

    exit_code = 4


class Unreachable(RemoteError):
    """No peer answered at that address in time."""


class Refused(RemoteError):
    """The peer refused, and said why.

    `code` is one of the refusal codes of docs/spec/session.md (for example `busy`, `unknown-model`).
    """

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ProtocolViolation(RemoteError):
    """The peer sent what the protocol forbids. The link to it is closed; do not retry with the same peer."""


class InvalidRecord(P2pgridError):
    """Bytes that claim to be a signed record and are not an acceptable one.

    `code` is the audit's finding code for the same fault (docs/spec/audit.md).
    """

    exit_code = 1

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code
