"""One checking process for a module's documents."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from p2pgrid.settlement.invoices.validate import Validator


@pytest.fixture(scope="session")
def validator() -> Iterator[Validator]:
    with Validator() as one:
        yield one
