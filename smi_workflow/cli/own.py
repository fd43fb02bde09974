"""Owns the finding of a user's own workflow by `MODULE:ATTRIBUTE`. Called by verify.py and simulate.py."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from smi_workflow.errors import ConfigError


def load_own(name: str) -> object:
    """What this name stands for; modules beside the present folder are found.

    Raises:
        ConfigError: it is no such name, or there is no such thing.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"--workflow takes MODULE:ATTRIBUTE, not {name!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        # As `python -m` does: a workflow of one's own mostly lies beside.
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--workflow {name}: {error}") from None
