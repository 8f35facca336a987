"""Network namespaces that live as long as the process that made them, and leave nothing behind.

A namespace has no name anywhere: a `cat` holds it, which reads a pipe from us. When we end, however we end, the pipe
ends, the `cat` with it, and the kernel takes the namespace and all its devices away. So two runs cannot collide, and
a run that was killed leaves nothing for the next one to remove.

Root makes them as it is. Anybody else does so in a user namespace, where the kernel lets him.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
from types import TracebackType
from typing import Final, Self

START_TIMEOUT_S: Final = 10.0
COMMAND_TIMEOUT_S: Final = 20.0
_PROGRAMS: Final = ("ip", "nsenter", "setpriv", "unshare")


class Unavailable(Exception):
    """A laboratory cannot be had on this machine; the message says why."""


class Holder:
    """A process that holds the namespaces it was started in, until it is closed or we end."""

    def __init__(self, *command: str) -> None:
        """`command` runs a program in new namespaces. Raises Unavailable with what it says where it cannot."""
        # A session of its own: Ctrl-C is for us, who close what runs inside first.
        self._process = subprocess.Popen(
            [*command, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid: Final = self._process.pid
        try:
            if not self._answers():
                raise Unavailable(f"`{' '.join(command)}` failed: {self._complaint()}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go. Safe to call twice."""
        process = self._process
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _answers(self) -> bool:
        """True once `cat` runs: it says what it is told."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        return bool(ready) and self._process.stdout.read(1) == b"\n"

    def _complaint(self) -> str:
        self._process.kill()
        assert self._process.stderr is not None
        return self._process.stderr.read().decode(errors="replace").strip() or "it said nothing"


class Namespace:
    """One host's network: its own devices, addresses, routes, firewall and ports."""

    def __init__(self, name: str, enter: list[str], holder: Holder) -> None:
        self.name: Final = name
        self._holder: Final = holder
        self.enter: Final = [*enter, "--net", "--target", str(holder.pid), "--"]
        """What runs a command inside, put in front of it."""

    @property
    def pid(self) -> int:
        """The holder's: `ip link set DEVICE netns PID` moves a device here."""
        return self._holder.pid

    @property
    def prefix(self) -> list[str]:
        """As `enter`, for what must end with us: a change of credentials on the way makes the kernel forget that."""
        return [*self.enter, "setpriv", "--pdeathsig", "TERM", "--"]

    def run(self, *command: str, text: str = "") -> str:
        """Run a command inside, with `text` on its standard input; what it prints. Raises Unavailable."""
        done = subprocess.run(
            [*self.enter, *command], input=text, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )
        if done.returncode:
            raise Unavailable(f"`{' '.join(command)}` failed at {self.name}: {done.stderr.strip()}\n{text}".rstrip())
        return done.stdout

    def close(self) -> None:
        """Let go of it: it ends with the last process inside."""
        self._holder.close()


class Namespaces:
    """Makes namespaces, and closes all of them."""

    def __init__(self) -> None:
        """Raises Unavailable where none may be made here."""
        missing = [program for program in _PROGRAMS if not shutil.which(program)]
        if missing:
            raise Unavailable(f"{', '.join(missing)} not found (packages iproute2 and util-linux)")
        self._all: list[Namespace] = []
        self._user = None if os.geteuid() == 0 else Holder("unshare", "--user", "--map-root-user")
        user = ["--user", "--preserve-credentials"] if self._user else []
        self._enter = ["nsenter", *user]
        self._inside = [*self._enter, "--target", str(self._user.pid), "--"] if self._user else []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, name: str) -> Namespace:
        """A new one, with nothing in it but a loopback device that is up. Raises Unavailable."""
        made = Namespace(name, self._enter, Holder(*self._inside, "unshare", "--net"))
        self._all.append(made)
        made.run("ip", "link", "set", "lo", "up")
        return made

    def close(self) -> None:
        """Close all. Safe to call twice."""
        while self._all:
            self._all.pop().close()
        if self._user is not None:
            self._user.close()
