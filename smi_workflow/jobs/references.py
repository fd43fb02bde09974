"""Owns the word for a post or an attachment that is not there. Called by manager.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import peewee

from smi_workflow.errors import InvalidInput
from smi_workflow.settings import Settings


@contextmanager
def references_named(settings: Settings) -> Iterator[None]:
    """Name what refers to nothing: in WordPress's own database references are foreign keys.

    Raises:
        InvalidInput: the database refused one of them.
    """
    try:
        yield
    except peewee.IntegrityError as error:
        if not settings.wordpress_tables:
            raise
        raise InvalidInput("post_id", "or attachment_id names nothing that WordPress has") from error
