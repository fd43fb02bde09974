"""Owns what may go wrong in a simulated run, and how often. Called by the stage, the broker and the providers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from smi_workflow.errors import InvalidInput

# Kind → how often, as a share of the occasions. All of them are on unless told otherwise.
RATES = {
    "crash": 0.0012,  # a process dies at a point outside a transaction
    "crash_inside": 0.0004,  # … inside one
    "kill": 0.0004,  # a process dies at whatever it is doing, per step
    "stop": 0.0004,  # a handler is interrupted, as by SIGTERM
    "freeze": 0.003,  # a process stands still in the midst of something, past its leases, and comes back
    "skew": 0.05,  # a process starts with a clock that is off
    "deploy": 0.25,  # a process starts on the older release
    "lose": 0.02,  # a message is lost
    "duplicate": 0.02,  # a message arrives twice
    "flush": 0.0002,  # the broker forgets everything, per step
    "refuse": 0.01,  # a provider refuses for good
    "unavailable": 0.03,  # … is away, or too busy
    "unanswered": 0.02,  # … does it, and the answer is lost
    "slow": 0.02,  # … takes longer than a lease
    "webhook_lost": 0.05,  # an event never arrives
    "event_gone": 0.3,  # … and Stripe lists it no more; of those that can be found out otherwise
    "webhook_twice": 0.05,  # … arrives twice
    "webhook_late": 0.10,  # … arrives late, or early: before the answer to the call that caused it
    "buyer": 0.15,  # a buyer does something unusual
    "upscale": 0.08,  # an upscale fails, or is late, or of the wrong size
    "refund": 0.15,  # a refund is slow, fails, or fails after it had succeeded
    "dispute": 0.04,  # a buyer goes to the bank
    "admin": 0.20,  # an admin acts on a sale, at any moment
    "disk": 0.01,  # the disk is full
}


@dataclass(slots=True)
class Faults:
    """How often each kind of fault strikes, and how often it did.

    Args:
        rates: kind → share; a kind that is missing never strikes.
        random: decides.
    """

    rates: dict[str, float]
    random: Random
    struck: dict[str, int] = field(default_factory=dict)
    over: bool = False

    def strikes(self, kind: str) -> bool:
        """Whether it strikes now. Nothing does once the time of faults is over."""
        rate = self.rates.get(kind, 0.0)
        if self.over or not rate or self.random.random() >= rate:
            return False
        self.struck[kind] = self.struck.get(kind, 0) + 1
        return True


def read_rates(words: Iterable[str]) -> dict[str, float]:
    """Read `all`, `none`, `crash`, `crash=0.01`, `all,-skew` …

    Raises:
        InvalidInput: an unknown kind or a share outside 0 to 1.
    """
    rates: dict[str, float] = {}
    for word in words:
        name, _, share = word.strip().partition("=")
        if name in ("all", "none"):
            rates = dict(RATES) if name == "all" else {}
            continue
        kind = name.removeprefix("-")
        if kind not in RATES:
            raise InvalidInput("faults", f"there is no {kind!r}; there are: {', '.join(RATES)}")
        try:
            rates[kind] = 0.0 if name.startswith("-") else float(share) if share else RATES[kind]
        except ValueError:
            raise InvalidInput("faults", f"{share!r} is not a share") from None
        if not 0 <= rates[kind] <= 1:
            raise InvalidInput("faults", f"{kind} must be 0 to 1, not {share}")
    return rates
