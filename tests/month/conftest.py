"""The engine that the operators' nodes name; nobody asks it anything."""

from tests.grid.conftest import fake_engine

__all__ = ["fake_engine"]
