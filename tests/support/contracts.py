"""Owns the way to the provider contracts, which live outside the repository. Called by contract tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def contracts_dir() -> Path:
    """The folder of provider contracts; skips where it is absent, fails there in CI."""
    folder = Path(os.environ.get("SMI_CONTRACTS_DIR") or REPOSITORY.parent / "shared" / "contracts")
    if folder.is_dir():
        return folder
    message = "the provider contracts are not here; set SMI_CONTRACTS_DIR"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
