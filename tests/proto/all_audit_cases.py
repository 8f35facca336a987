"""Every case of the audit, from the rooms that hold them."""

from __future__ import annotations

from tests.proto import (
    audit_cases_batch,
    audit_cases_disputes,
    audit_cases_keys,
    audit_cases_log,
    audit_cases_settlement,
    audit_more_cases,
)
from tests.proto.audit_cases import CASES, AuditCase

_ROOMS = (
    audit_cases_batch,
    audit_cases_disputes,
    audit_cases_keys,
    audit_cases_log,
    audit_cases_settlement,
    audit_more_cases,
)
assert all(_ROOMS)  # they fill the list

__all__ = ["CASES", "AuditCase"]
