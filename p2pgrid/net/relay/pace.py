"""How fast bytes may go: a bucket of them that fills by the second. No I/O; time is seconds of any steady clock."""

from __future__ import annotations

from typing import Final

_BURST_S: Final = 1.0


class Bucket:
    """Lets so many bytes a second through, and a second's worth at once after a pause."""

    def __init__(self, bytes_per_s: int, now_s: float) -> None:
        self._rate = bytes_per_s
        self._level = bytes_per_s * _BURST_S
        self._at_s = now_s

    def take(self, n_bytes: int, now_s: float) -> float:
        """Take the bytes out now. How many seconds to wait before they are sent: until what was overdrawn is back."""
        self._level = min(self._level + (now_s - self._at_s) * self._rate, self._rate * _BURST_S) - n_bytes
        self._at_s = now_s
        return max(-self._level / self._rate, 0.0)
