"""Owns the worker process of the later release: today's, wired with its declarations.

Run by the test of two releases, as `dramatiq tests.support.later_actors`.
"""

from __future__ import annotations

from unittest.mock import patch

from smi_workflow import app as release
from tests.support.later_shop import LaterApp

with patch.object(release, "App", LaterApp):
    # Importing it wires it, as the `dramatiq` command expects.
    from workers import actors

__all__ = ["actors"]
