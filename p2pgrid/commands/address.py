"""Where a node's command socket is.

It lies in the data folder. A Unix socket's path has about a hundred bytes, so a data folder with a long name has its
socket in the user's runtime folder, under a name that derives from the data folder's.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from pathlib import Path
from typing import Final

from p2pgrid.errors import LocalError

SOCKET_NAME: Final = "commands.sock"
MOST_PATH_BYTES: Final = 103
"""What every platform takes: macOS has 104 with the closing zero, Linux 108."""
IS_SUPPORTED: Final = hasattr(socket, "AF_UNIX") and os.name == "posix"
"""False on Windows, where asyncio serves no Unix sockets."""


def socket_path(data: Path) -> Path:
    """The socket of the node with this data folder, whether or not one runs. The same for the node and for commands."""
    # The folder may not be there yet, and may be reached by a link: the name must be one and the same.
    path = data.resolve() / SOCKET_NAME
    if len(os.fsencode(path)) <= MOST_PATH_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return runtime_folder() / f"{name}.sock"


def runtime_folder() -> Path:
    """A short folder of this user's own: under XDG_RUNTIME_DIR, else under /tmp. It may have to be made."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given.startswith("/") and len(os.fsencode(given)) <= 40 and Path(given).is_dir():
        return Path(given) / "p2pgrid"
    return Path("/tmp") / f"p2pgrid-{os.geteuid()}"  # noqa: S108 - its owner and mode are checked before use


def prepare_folder(path: Path) -> None:
    """Make the socket's folder, for its owner alone. Raises LocalError where it is somebody else's."""
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise LocalError(f"the folder {folder} cannot be made: {error.strerror}.", hint="Check its owner.") from None
    if folder == runtime_folder() and (found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077):
        raise LocalError(
            f"the folder {folder} is open to others, so no command is taken there.",
            hint="Remove it, or choose a data folder with a shorter name.",
        )


def is_ours(path: Path) -> bool:
    """True if there is a socket at `path` that this user made. One that somebody else made is not spoken to."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid()
