"""An explicit state-machine workflow engine with a durable queue, that sells AI-upscaled images.

`open_app` is loaded on first use, so that the engine alone (`smi_workflow.engine`) loads no Stripe.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["open_app"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("smi_workflow.app"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
