"""Every case of the audit, from the rooms that hold them."""

from __future__ import annotations

from tests.proto import audit_cases_disputes, audit_cases_keys, audit_cases_log, audit_cases_settlement
from tests.proto.audit_cases import CASES, AuditCase

assert audit_cases_disputes and audit_cases_keys and audit_cases_log and audit_cases_settlement  # they fill the list

__all__ = ["CASES", "AuditCase"]
