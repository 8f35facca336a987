"""A value of yes or no that tasks of trio wait for."""

from __future__ import annotations

import trio


class Flag:
    """Set from anywhere in the trio thread."""

    def __init__(self, value: bool = False) -> None:
        self._value = value
        self._changed = trio.Event()

    @property
    def value(self) -> bool:
        """As it is now."""
        return self._value

    def set(self, value: bool) -> None:
        """Wakes who waits for that value."""
        if value != self._value:
            self._value = value
            self._changed.set()
            self._changed = trio.Event()

    async def wait(self, value: bool) -> None:
        """Return once it has that value, at once if it has it now."""
        while self._value != value:
            await self._changed.wait()
