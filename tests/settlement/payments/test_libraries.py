"""The extra `settle`: imported late, and named where it is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from p2pgrid.settlement.payments.accounts import checked_bic, checked_iban
from p2pgrid.settlement.payments.latin import to_sepa_latin
from p2pgrid.settlement.payments.pain001 import write_pain001
from p2pgrid.settlement.payments.refusals import MissingLibrary
from tests.settlement.payments.makers import ALICE
from tests.settlement.payments.test_orders import NOW, batch


@pytest.mark.parametrize(
    ("library", "run"),
    [
        ("schwifty", lambda: checked_iban(f" {ALICE} ")),
        ("schwifty", lambda: checked_bic("COBADEFFXXX")),
        ("lxml", lambda: write_pain001(batch(), created=NOW)),
        ("text_unidecode", lambda: to_sepa_latin("Съединение")),
    ],
)
def test_what_is_missing_is_named(library: str, run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    batch()
    checked_iban.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibrary, match=r"pip install 'p2pgrid\[settle\]'"):
        run()


def test_importing_the_room_imports_none_of_them() -> None:
    code = (
        "import sys, p2pgrid.settlement.payments.rails, p2pgrid.settlement.payments.matching;"
        "sys.exit(bool({'lxml', 'schwifty', 'sepaxml', 'text_unidecode'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
