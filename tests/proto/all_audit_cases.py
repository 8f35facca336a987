"""Every case of the audit, from the rooms that hold them."""

from __future__ import annotations

from tests.proto import (
    audit_cases_batch,
    audit_cases_credit,
    audit_cases_disputes,
    audit_cases_keys,
    audit_cases_log,
    audit_cases_set_off,
    audit_cases_settlement,
    audit_more_cases,
)
from tests.proto.audit_cases import CASES, AuditCase

_ROOMS = (
    audit_cases_batch,
    audit_cases_credit,
    audit_cases_disputes,
    audit_cases_keys,
    audit_cases_log,
    audit_cases_set_off,
    audit_cases_settlement,
    audit_more_cases,
)
# The rooms fill the list as they are imported, by whoever comes first.
_PLACES = ["tests.proto.audit_cases", *(room.__name__ for room in _ROOMS)]
CASES.sort(key=lambda case: _PLACES.index(case.build.__module__))

__all__ = ["CASES", "AuditCase"]
