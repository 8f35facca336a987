"""The auditor: reads bundles, has `proto.verdict` judge them, reports."""

from p2pgrid.audit.check import audit_files

__all__ = ["audit_files"]
