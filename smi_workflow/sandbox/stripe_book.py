"""Owns what the imitated Stripe knows: objects, one lock, events told after each turn. Called by its server."""

from __future__ import annotations

import copy
import heapq
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from smi_workflow.sandbox import stripe_objects as objects
from smi_workflow.sandbox.stripe_errors import invalid, missing_object
from smi_workflow.sandbox.stripe_objects import Payload

PAGE_DEFAULT = 10
PAGE_MAX = 100
NOUNS: Mapping[str, str] = {
    "sessions": "checkout.session",
    "intents": "payment_intent",
    "charges": "charge",
    "refunds": "refund",
    "disputes": "dispute",
    "events": "event",
}
KIND_BY_PREFIX: Mapping[str, str] = {
    "cs": "sessions",
    "pi": "intents",
    "ch": "charges",
    "re": "refunds",
    "dp": "disputes",
    "evt": "events",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """The API request that causes what happens; both are empty for a buyer, a bank or the dashboard."""

    request_id: str | None = None
    idempotency_key: str | None = None


NOBODY = Origin()


@dataclass(slots=True)
class SessionExtras:
    """What a session was created with but does not show."""

    intent_data: Payload = field(default_factory=dict)
    title: str = ""
    line_items: list[Payload] = field(default_factory=list)


class StripeBook:
    """All objects in the order of their creation. Change them only inside `turn`."""

    def __init__(
        self,
        now: Callable[[], float],
        expects_webhook: Callable[[str], bool],
        publish: Callable[[Payload], None],
    ) -> None:
        self.tables: dict[str, dict[str, Payload]] = {kind: {} for kind in NOUNS}
        self.extras: dict[str, SessionExtras] = {}
        self._modes: dict[str, bool] = {}
        self._lock = threading.RLock()
        self._now = now
        self._expects_webhook = expects_webhook
        self._publish = publish
        self._origin = NOBODY
        self._fresh: list[Payload] = []
        self._due: list[tuple[int, str]] = []

    @contextmanager
    def turn(self, origin: Origin = NOBODY) -> Iterator[None]:
        """Hold the book; the events recorded meanwhile go out once it is let go, before the caller answers."""
        fresh: list[Payload] = []
        try:
            with self._lock:
                self._origin = origin
                try:
                    self._expire_due()
                    yield
                finally:
                    fresh, self._fresh = self._fresh, []
                    self._origin = NOBODY
        finally:
            for event in fresh:
                self._publish(event)

    def now(self) -> int:
        """The provider's time in whole seconds."""
        return int(self._now())

    def add(self, kind: str, payload: Payload, livemode: bool) -> Payload:
        """Keep a new object."""
        self.tables[kind][payload["id"]] = payload
        if kind == "sessions":
            heapq.heappush(self._due, (payload["expires_at"], payload["id"]))
        self._modes[payload["id"]] = livemode
        return payload

    def get(self, kind: str, object_id: str, livemode: bool | None, param: str = "id") -> Payload:
        """The living object.

        Args:
            livemode: the mode of the asker's key; None looks in both.
        Raises:
            StripeFailure: resource_missing.
        """
        payload = self.tables[kind].get(object_id)
        if payload is None:
            raise missing_object(NOUNS[kind], object_id, param)
        if livemode is not None and self._modes[object_id] is not livemode:
            raise missing_object(NOUNS[kind], object_id, param, other_mode="test" if livemode else "live")
        return payload

    def livemode_of(self, object_id: str) -> bool:
        """The mode that an object was made in."""
        return self._modes[object_id]

    def record(self, kind: str, payload: Payload, previous: Payload | None = None) -> None:
        """Note that something happened to an object, as it is now."""
        livemode = self._modes[payload["id"]]
        event = objects.event(
            now=self.now(),
            livemode=livemode,
            kind=kind,
            snapshot=copy.deepcopy(payload),
            previous=previous,
            request={"id": self._origin.request_id, "idempotency_key": self._origin.idempotency_key},
            pending=1 if self._expects_webhook(kind) else 0,
        )
        self.add("events", event, livemode)
        self._fresh.append(copy.deepcopy(event))

    def twin(self, event_id: str) -> Payload:
        """A second Event object for the same fact, as Stripe sometimes makes."""
        with self._lock:
            original = self.tables["events"][event_id]
            second = {**copy.deepcopy(original), "id": objects.new_id("evt")}
            return copy.deepcopy(self.add("events", second, self._modes[event_id]))

    def mark_delivered(self, event_id: str) -> None:
        """The endpoint has taken the event."""
        with self._lock:
            self.tables["events"][event_id]["pending_webhooks"] = 0

    def show(self, payload: Payload, expand: list[str] | None = None) -> Payload:
        """A copy for the answer, with the asked-for ids replaced by their objects."""
        shown = copy.deepcopy(payload)
        for path in expand or []:
            self._expand(shown, path.split("."), path)
        return shown

    def page(
        self, kind: str, params: Payload, livemode: bool, url: str, fits: Callable[[Payload], bool]
    ) -> Payload:
        """One page of a list, newest first.

        Raises:
            StripeFailure: a limit or cursor that makes no sense.
        """
        limit = params.get("limit", PAGE_DEFAULT)
        if not 1 <= limit <= PAGE_MAX:
            raise invalid(f"Invalid limit: must be between 1 and {PAGE_MAX}", "limit", "parameter_invalid_integer")
        created = params.get("created", {})
        rows = [
            payload
            for payload in reversed(self.tables[kind].values())
            if self._modes[payload["id"]] is livemode and _within(payload["created"], created) and fits(payload)
        ]
        backwards = "ending_before" in params
        if backwards:
            rows = rows[: self._position(kind, rows, params["ending_before"], livemode, "ending_before")]
        if "starting_after" in params:
            rows = rows[self._position(kind, rows, params["starting_after"], livemode, "starting_after") + 1 :]
        data = rows[-limit:] if backwards else rows[:limit]
        shown = [self.show(payload) for payload in data]
        answer = objects.list_page(shown, len(rows) > limit, url)
        for path in params.get("expand", []):
            head, _, rest = path.partition(".")
            if head != "data" or not rest:
                raise invalid(f"This property cannot be expanded ({path}).", "expand")
            for payload in shown:
                self._expand(payload, rest.split("."), path)
        return answer

    def find(self, kind: str, **wanted: Any) -> list[Payload]:
        """The living objects whose fields have these values."""
        return [
            payload
            for payload in self.tables[kind].values()
            if all(payload.get(name) == value for name, value in wanted.items())
        ]

    def ledger(self) -> dict[str, list[Payload]]:
        """A copy of everything, for independent checks."""
        with self._lock:
            return {kind: copy.deepcopy(list(rows.values())) for kind, rows in self.tables.items()}

    def expire(self, session: Payload) -> None:
        """Close an open session."""
        session["status"] = "expired"
        session["url"] = None
        self.record("checkout.session.expired", session)

    def _expire_due(self) -> None:
        while self._due and self._due[0][0] <= self._now():
            session = self.tables["sessions"][heapq.heappop(self._due)[1]]
            if session["status"] == "open":
                self.expire(session)

    def _position(self, kind: str, rows: list[Payload], cursor: str, livemode: bool, param: str) -> int:
        anchor = self.get(kind, cursor, livemode, param)
        for index, payload in enumerate(rows):
            if payload is anchor:
                return index
        raise invalid(f"{param}: '{cursor}' is not part of this list.", param)

    def _expand(self, payload: Payload, path: list[str], whole: str) -> None:
        name, rest = path[0], path[1:]
        if name == "line_items" and payload.get("object") == "checkout.session":
            items = copy.deepcopy(self.extras[payload["id"]].line_items)
            url = f"/v1/checkout/sessions/{payload['id']}/line_items"
            payload["line_items"] = objects.list_page(items, False, url)
            return
        if name not in payload:
            raise invalid(f"This property cannot be expanded ({whole}).", "expand")
        value = payload[name]
        if value is None:
            return
        if isinstance(value, str):
            kind = KIND_BY_PREFIX.get(value.split("_", 1)[0])
            if kind is None or value not in self.tables[kind]:
                raise invalid(f"This property cannot be expanded ({whole}).", "expand")
            payload[name] = value = copy.deepcopy(self.tables[kind][value])
        if rest and isinstance(value, dict):
            self._expand(value, rest, whole)


def _within(created: int, wanted: Mapping[str, int]) -> bool:
    return (
        created > wanted.get("gt", -1)
        and created >= wanted.get("gte", 0)
        and ("lt" not in wanted or created < wanted["lt"])
        and ("lte" not in wanted or created <= wanted["lte"])
    )
