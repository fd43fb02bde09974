"""Owns what a buyer orders, and what must be right about it before anything is fetched. Called by manager.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from email_validator import EmailNotValidError, validate_email

from smi_workflow.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a buyer orders."""

    image_url: str
    resolution: str
    image_width: int
    image_height: int
    post_id: int | None = None
    attachment_id: int | None = None
    email: str | None = None


def read_order(order: Mapping[str, Any] | NewJob) -> NewJob:
    """The order, checked field by field; its size, resolution and price are checked when it is quoted.

    Raises:
        InvalidInput: names the field.
    """
    if isinstance(order, Mapping):
        known = set(NewJob.__dataclass_fields__)
        unknown = sorted(set(order) - known)
        if unknown:
            raise InvalidInput(unknown[0], f"is not part of an order; known: {', '.join(sorted(known))}")
        for name in ("image_url", "resolution", "image_width", "image_height"):
            if order.get(name) in (None, ""):
                raise InvalidInput(name, "is missing")
        order = NewJob(**order)
    for name in ("image_width", "image_height", "post_id", "attachment_id"):
        value = getattr(order, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InvalidInput(name, f"must be a whole number, not {value!r}")
        if value is not None and not 0 <= value < 2**63:
            raise InvalidInput(name, "is out of range")
    for name in ("image_url", "resolution"):
        if not isinstance(getattr(order, name), str):
            raise InvalidInput(name, "must be text")
    if order.email is not None:
        try:
            validate_email(str(order.email), check_deliverability=False)
        except EmailNotValidError as problem:
            raise InvalidInput("email", str(problem)) from None
    return order
