"""Owns how hard hypothesis tries, and the list of properties that atheris runs too. Called by the fuzz tests.

`make test` runs fixed examples. Under CI_WIDE ten times as many are run, others each time, from a seed that is
printed; SMI_FUZZ_SEED repeats them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

WIDE = os.environ.get("CI_WIDE") == "true" or "SMI_FUZZ_SEED" in os.environ
SEED = int(os.environ.get("SMI_FUZZ_SEED", "0")) or secrets.randbits(32)
_TIMES = 10 if WIDE else 1

# Name → property, as hypothesis made it; atheris feeds bytes to the same strategies.
PROPERTIES: dict[str, Any] = {}


def fuzzed(examples: int, **strategies: SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a property of a function, tried with so many examples.

    It must need no fixture: atheris calls it without pytest.
    """

    def make(check: Callable[..., None]) -> Any:
        made: Any = settings(
            max_examples=examples * _TIMES,
            derandomize=not WIDE,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )(given(**strategies)(check))
        made = seed(SEED)(made) if WIDE else made
        name = check.__name__.removeprefix("test_")
        assert name not in PROPERTIES, f"{name} is a property already"
        PROPERTIES[name] = made
        return made

    return make
