"""Owns the faults that a server of the sandbox is told to commit. Called by its servers and by tests."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from smi_workflow.errors import InvalidInput

HANG_SECONDS = 120.0


class Channel(StrEnum):
    """Where a fault strikes."""

    REQUEST = "request"
    WEBHOOK = "webhook"
    RESULT = "result"
    REFUND = "refund"
    SMTP = "smtp"


KINDS: Mapping[Channel, frozenset[str]] = {
    Channel.REQUEST: frozenset({"status", "slow", "hang", "reset", "reset_after", "garbage"}),
    Channel.WEBHOOK: frozenset({"lost", "duplicate", "early", "delay", "twin"}),
    Channel.RESULT: frozenset(
        {"wrong_dimensions", "not_an_image", "fail", "never", "truncated", "fail_at_submit"}
    ),
    Channel.REFUND: frozenset({"pending", "requires_action", "failed"}),
    Channel.SMTP: frozenset({"refuse", "slow", "reset", "reset_after"}),
}
MATCH_KEYS: Mapping[Channel, frozenset[str]] = {
    Channel.REQUEST: frozenset({"method", "path"}),
    Channel.WEBHOOK: frozenset({"webhook"}),
    Channel.RESULT: frozenset({"result"}),
    Channel.REFUND: frozenset({"refund"}),
    Channel.SMTP: frozenset({"smtp", "address"}),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong. Which fields matter depends on the kind.

    `status`: answers with status, body and headers; with `after` the work was done all the same; `remember`
    says whether an idempotency key keeps the answer (unset: a plain 500 does, as at Stripe).
    `slow`, `delay`: seconds. `hang`: seconds until the connection drops without an answer. `duplicate`: copies.
    `refuse`: an SMTP status with a text. `fail`, `fail_at_submit`: text is the provider's error.
    """

    kind: str
    status: int = 503
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 2.0
    copies: int = 2
    after: bool = False
    remember: bool | None = None
    text: str = ""

    @property
    def remembered(self) -> bool:
        """True when an idempotency key would replay this answer."""
        return self.status == 500 if self.remember is None else self.remember


@dataclass(slots=True)
class Rule:
    """One standing order: what it matches, what happens then, how often and how likely."""

    id: int
    channel: Channel
    match: Mapping[str, str]
    fault: Fault
    times: int | None
    probability: float
    taken: int = 0

    def fits(self, what: Mapping[str, str]) -> bool:
        """True when every pattern of the rule matches what is happening."""
        return all(_fits(key, pattern, what.get(key, "")) for key, pattern in self.match.items())


def _fits(key: str, pattern: str, value: str) -> bool:
    if key in ("result", "refund"):
        return True
    if key == "path" and not any(letter in pattern for letter in "*?["):
        return value.startswith(pattern)
    if key in ("method", "address"):
        return fnmatchcase(value.lower(), pattern.lower())
    return fnmatchcase(value, pattern)


class FaultBook:
    """The rules of one server, asked at every turn; safe for threads, repeatable by seed."""

    def __init__(self, seed: object = None) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(str(seed)) if seed is not None else random.Random()
        self._rules: list[Rule] = []
        self._numbers = itertools.count(1)

    def add(
        self, match: Mapping[str, Any], fault: Mapping[str, Any], times: int | None = 1, probability: float = 1.0
    ) -> int:
        """Add a rule, tried after those already there.

        Args:
            match: {"method", "path"} (path: prefix, or a pattern when it has * ? [), {"webhook": pattern},
                {"result": true}, {"refund": true} or {"smtp": "rcpt" | "data", "address": pattern}.
            fault: {"kind": …} and the kind's fields, see Fault.
            times: how often it strikes; None is for ever.
            probability: 0..1, drawn each time it matches.
        Returns: the rule's number.
        Raises:
            InvalidInput: an unknown key, kind or value.
        """
        channel = _channel(match)
        built = _fault(channel, fault)
        if times is not None and (not isinstance(times, int) or isinstance(times, bool) or times < 1):
            raise InvalidInput("times", "must be a whole number from 1, or null for ever")
        if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
            raise InvalidInput("probability", "must be a number from 0 to 1")
        with self._lock:
            rule = Rule(
                next(self._numbers), channel, {k: str(v) for k, v in match.items()}, built, times, probability
            )
            self._rules.append(rule)
        return rule.id

    def clear(self) -> None:
        """Forget every rule."""
        with self._lock:
            self._rules.clear()

    def listing(self) -> list[dict[str, Any]]:
        """Every rule that still stands, with how often it has struck."""
        with self._lock:
            return [
                {
                    "id": rule.id,
                    "match": dict(rule.match),
                    "fault": {"kind": rule.fault.kind},
                    "times": rule.times,
                    "probability": rule.probability,
                    "taken": rule.taken,
                }
                for rule in self._rules
            ]

    def take(self, channel: Channel, kinds: Collection[str] | None = None, **what: str) -> Fault | None:
        """The fault to commit now, if any; a rule that has struck often enough is gone.

        Args:
            kinds: only these kinds can be committed at this point.
            what: what is happening: method and path, webhook, address, smtp.
        """
        with self._lock:
            for rule in self._rules:
                if rule.channel is not channel or (kinds is not None and rule.fault.kind not in kinds):
                    continue
                if not rule.fits(what) or self._random.random() >= rule.probability:
                    continue
                rule.taken += 1
                if rule.times is not None:
                    rule.times -= 1
                    if rule.times == 0:
                        self._rules.remove(rule)
                return rule.fault
        return None


def _channel(match: Mapping[str, Any]) -> Channel:
    if not isinstance(match, Mapping) or not match:
        raise InvalidInput("match", 'must be an object such as {"method": "POST", "path": "/v1/refunds"}')
    for channel, keys in MATCH_KEYS.items():
        if set(match) <= keys:
            return channel
    raise InvalidInput("match", f"keys {sorted(match)} do not belong together")


def _fault(channel: Channel, fields: Mapping[str, Any]) -> Fault:
    if not isinstance(fields, Mapping):
        raise InvalidInput("fault", "must be an object with a kind")
    kind = fields.get("kind")
    if kind not in KINDS[channel]:
        raise InvalidInput("fault", f"kind for a {channel} must be one of {', '.join(sorted(KINDS[channel]))}")
    unknown = set(fields) - set(Fault.__dataclass_fields__)
    if unknown:
        raise InvalidInput("fault", f"unknown fields {sorted(unknown)}")
    wanted: dict[str, tuple[type, ...]] = {
        "status": (int,),
        "headers": (dict,),
        "seconds": (int, float),
        "copies": (int,),
        "text": (str,),
    }
    for name, types in wanted.items():
        if name in fields and not isinstance(fields[name], types):
            raise InvalidInput("fault", f"{name} has the wrong type")
    defaults: dict[str, Any] = {}
    if kind == "hang":
        defaults["seconds"] = HANG_SECONDS
    if kind == "refuse":
        defaults["status"] = 550
    return Fault(**{**defaults, **fields})
