"""Numbers that several processes keep together: one memory, a row for each process, which writes no other.

A sum is read without a lock. It may miss what another process writes at that very moment: whoever checks a limit and
then adds to its own row may go past the limit with every other process doing the same, so by one step for each.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Final

_ITEM_BYTES: Final = 8


class SharedCounters:
    """`columns` named 64-bit numbers for each of `rows` processes; this one writes row `row`."""

    def __init__(self, descriptor: int, rows: int, columns: Sequence[str], row: int) -> None:
        """On the file that `make_memory` made. The descriptor may be closed afterwards."""
        self._columns: Final = {name: index for index, name in enumerate(columns)}
        self._n_columns: Final = len(columns)
        self._rows: Final = rows
        self._row: Final = row
        self._memory = mmap.mmap(descriptor, rows * len(columns) * _ITEM_BYTES)
        self._cells = memoryview(self._memory).cast("q")

    def set(self, column: str, value: int) -> None:
        """Write this process's own number."""
        self._cells[self._row * self._n_columns + self._columns[column]] = value

    def own(self, column: str) -> int:
        """This process's own number."""
        return self._cells[self._row * self._n_columns + self._columns[column]]

    def total(self, column: str) -> int:
        """The sum over all processes."""
        return sum(self._cells[self._columns[column] :: self._n_columns].tolist())

    def others(self, column: str) -> int:
        """The sum over all processes but this one."""
        return self.total(column) - self.own(column)

    def clear_row(self, row: int) -> None:
        """A process is gone: its numbers count no more. For the main process alone."""
        for column in range(self._n_columns):
            self._cells[row * self._n_columns + column] = 0

    def close(self) -> None:
        """Let go of the memory."""
        self._cells.release()
        self._memory.close()


def make_memory(rows: int, n_columns: int) -> int:
    """The descriptor of a nameless file of zeros for `SharedCounters`, which children may inherit."""
    descriptor = os.memfd_create("p2pgrid-counters", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, rows * n_columns * _ITEM_BYTES)
    return descriptor
