"""The vectors notice readers that are wrong: some of them here, all of them in `scripts/mutate_vectors`."""

from __future__ import annotations

import pytest

from tests.spec.mutants import LINK, LINK_MUTANTS, MUTANTS, NETWORK, NETWORK_MUTANTS, READER, is_noticed

ALL = [
    *((*one, READER, "reader") for one in MUTANTS),
    *((*one, LINK, "link_reader") for one in LINK_MUTANTS),
    *((*one, NETWORK, "network_reader") for one in NETWORK_MUTANTS),
]


@pytest.mark.parametrize(("source", "module"), [(READER, "reader"), (LINK, "link_reader"), (NETWORK, "network_reader")])
def test_the_reader_as_it_is_is_right(source: str, module: str) -> None:
    assert not is_noticed("unchanged", "class ", "class ", source, module)


def test_each_mutant_changes_what_is_there() -> None:
    for name, old, new, source, _ in ALL:
        assert old in source and old != new, name


@pytest.mark.parametrize("mutant", ALL[::15], ids=lambda one: one[0])
def test_a_wrong_reader_is_noticed(mutant: tuple[str, str, str, str, str]) -> None:
    assert is_noticed(*mutant)
