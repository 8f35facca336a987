"""The engine that the operators' nodes name, which nobody asks anything; and the month that faults are put into."""

from tests.grid.conftest import fake_engine
from tests.month.faults import deal, month, mutual

__all__ = ["deal", "fake_engine", "month", "mutual"]
