"""Stands between a node and its engine, so that the engine never outlives the node.

    python -I -S warden.py FOLDER COMMAND...        (stdin: a pipe from the node; stdout: `exit N` at the end)

The node may be killed at any instant, and vLLM is several processes. The kernel closes the node's end of the pipe
however it dies; the warden sees that, asks the engine to stop, and then kills the process group it leads. SIGTERM to
the warden is a request for a graceful stop and goes to the engine. FOLDER, with the engine's sockets, goes last.
Standard library only: it runs without the node's packages, in milliseconds and a few megabytes.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1


def main() -> None:
    folder, command = sys.argv[1], sys.argv[2:]
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def die_with_warden() -> None:
        # For the case that the warden itself is killed. Linux alone can do this; elsewhere the pipe must suffice.
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    child = subprocess.Popen(  # noqa: S603 - the command comes from the node, no shell
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=die_with_warden,
    )
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_outlive_node_briefly, args=(child, folder), daemon=True).start()
    status = child.wait()
    try:
        sys.stdout.write(f"exit {status}\n")
        sys.stdout.flush()
    except OSError:
        pass  # the node is gone
    _end(folder)


def _outlive_node_briefly(child: "subprocess.Popen[bytes]", folder: str) -> None:
    while os.read(0, 4096):
        pass
    child.terminate()
    time.sleep(GRACE_S)
    _end(folder)


def _end(folder: str) -> None:
    """Remove the sockets and kill what is left of the group, this process with it."""
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
