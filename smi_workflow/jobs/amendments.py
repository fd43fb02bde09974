"""Owns which fields of a job may be amended, and what fits them. Called by guards.py and updates.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from email_validator import EmailNotValidError, validate_email

# Contact and reference data; never money or state.
AMENDABLE = frozenset({"email", "post_id", "attachment_id"})


def amendment_problem(fields: Mapping[Any, object]) -> tuple[str, str] | None:
    """The first field whose new value cannot be kept, and why; None when all can."""
    if fields.get("email") is not None:
        try:
            validate_email(str(fields["email"]), check_deliverability=False)
        except EmailNotValidError as problem:
            return "email", str(problem)
    for name in ("post_id", "attachment_id"):
        if not _is_reference(fields.get(name)):
            return name, "must be a whole number"
    return None


def _is_reference(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63)
