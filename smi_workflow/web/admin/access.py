"""Owns who an admin is: bearer tokens, compared in constant time. Called by api.py."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Sequence

from flask import g, request
from pydantic import SecretStr

from smi_workflow.web.limits import Limits
from smi_workflow.web.problems import Problem

SCHEME = "bearer "
HEADER_LENGTH_MAX = 1000

log = logging.getLogger(__name__)


class Access:
    """Tells admins by their tokens.

    Args:
        pairs: `name:token`; a name may have several.
        limits: who fails too often is not listened to for a while.
    """

    def __init__(self, pairs: Sequence[SecretStr], limits: Limits) -> None:
        self._known = []
        for pair in pairs:
            name, _, token = pair.get_secret_value().partition(":")
            self._known.append((name, _digest(token)))
        self._limits = limits

    def actor(self) -> str:
        """Who sends this request, as history will name it.

        Raises:
            Problem: 401; 429 for an address that has tried too many wrong tokens, whatever it shows now.
        """
        self._limits.check_failures()
        given = request.headers.get("Authorization", "")
        shown = given[len(SCHEME) :].strip() if given.lower().startswith(SCHEME) else ""
        digest = _digest(shown[:HEADER_LENGTH_MAX])
        # Every token is compared, whatever the first says: the time taken tells nothing.
        fitting = [name for name, known in self._known if hmac.compare_digest(known, digest)]
        if fitting:
            return f"admin:{fitting[0]}"
        self._limits.note_failure()
        problem = "a token that is none of ours" if shown else "no bearer token"
        log.warning("an admin route was refused: %s (request %s)", problem, g.request_id)
        raise Problem(
            401,
            "This needs the header: Authorization: Bearer <a token of SMI_ADMIN_TOKENS>.",
            headers={"WWW-Authenticate": 'Bearer realm="smi"'},
        )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
