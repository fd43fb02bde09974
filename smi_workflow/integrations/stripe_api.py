"""Owns every call to Stripe: checkout sessions, refunds, look-ups. Called by effects, intake and app.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import stripe
from stripe.params import RefundCreateParams
from stripe.params.checkout import SessionCreateParams

from smi_workflow.errors import ConfigError, InvalidInput, ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.stripe_events import verify_event
from smi_workflow.integrations.stripe_http import Transport
from smi_workflow.integrations.stripe_objects import (
    CheckoutSession,
    PaymentIntent,
    StripeRefund,
    flag,
    identifier,
    text,
)

__all__ = ["KEY_HORIZON", "CheckoutSession", "PaymentIntent", "StripeApi", "StripeRefund", "verify_event"]

# How long Stripe honours an idempotency key (24 hours), with margin for clocks and slow requests.
KEY_HORIZON = timedelta(hours=23)
CLOCK_MARGIN = timedelta(minutes=5)
LIST_SECONDS = 28.0
LIST_SLICE = timedelta(minutes=30)
PAGE_SIZE = 100
EVENT_TYPES_MAX = 20

ListedKind = Literal["refund", "dispute"]
RetrievedKind = Literal["session", "intent", "refund"]

T = TypeVar("T")


class StripeApi:
    """A client for one account; safe in threads, no global state.

    Every call raises ServiceUnavailable (transient, or `outcome_unknown`: same key again within
    KEY_HORIZON) or ServiceRefused (final, with Stripe's `code` and `status`), and never retries by itself.

    Args:
        api_key: secret key of the account.
        base_url: `https://api.stripe.com`, or a stand-in's address.
        timeout_seconds: total time of one request, up to 28.
    Raises:
        ConfigError: a key or URL that cannot be used.
    """

    def __init__(self, api_key: str, base_url: str, *, timeout_seconds: float = 20.0) -> None:
        problems = []
        if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            problems.append("the Stripe API key must be printable ASCII without spaces")
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            problems.append("Stripe's base URL must be http(s)://host")
        if not 0 < timeout_seconds <= LIST_SECONDS:
            problems.append(f"Stripe's time-out must lie between 0 and {LIST_SECONDS:.0f} seconds")
        if problems:
            raise ConfigError("Stripe's client cannot be set up:", problems)
        self._transport = Transport(timeout_seconds)
        self._v1 = stripe.StripeClient(
            api_key,
            base_addresses={"api": base_url.rstrip("/")},
            max_network_retries=0,
            http_client=self._transport,
        ).v1

    def close(self) -> None:
        """Close this thread's connections; the next call opens new ones."""
        self._transport.close()

    def create_checkout_session(
        self,
        *,
        job_id: str,
        amount_cents: int,
        currency: str,
        description: str,
        success_url: str,
        cancel_url: str,
        expires_at: datetime,
        email: str | None,
        key: str,
    ) -> CheckoutSession:
        """Open a payment page for one job.

        Args:
            job_id: goes into the metadata of session and payment intent.
            amount_cents: minor units of `currency`, at least 1 (Stripe wants about $0.50).
            description: what the buyer reads as the article's name.
            success_url, cancel_url: sent as they are.
            expires_at: aware; Stripe takes 30 minutes to 24 hours ahead.
            email: prefilled when known.
            key: unchanged across retries, with unchanged parameters.
        Returns: the open session; its `payment_intent` is None until the buyer confirms.
        Raises:
            InvalidInput: a naive `expires_at`, an amount or key that cannot be.
            ServiceUnavailable: same key again, or `find_checkout_session` past the horizon.
            ServiceRefused: final.
        Source: Stripe API reference, create a Checkout Session.
        """
        _positive("amount_cents", amount_cents)
        metadata = {"job_id": job_id}
        params: SessionCreateParams = {
            "mode": "payment",
            "client_reference_id": job_id,
            "metadata": metadata,
            # The session's metadata does not reach the intent by itself.
            "payment_intent_data": {"metadata": metadata},
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": currency,
                        "unit_amount": amount_cents,
                        "product_data": {"name": description},
                    },
                }
            ],
            "success_url": success_url,
            "cancel_url": cancel_url,
            "expires_at": _unix("expires_at", expires_at),
            # Each of these would let an honest payment differ from the price we recorded.
            "adaptive_pricing": {"enabled": False},
            "allow_promotion_codes": False,
            "automatic_tax": {"enabled": False},
        }
        if email:
            params["customer_email"] = email
        session = self._v1.checkout.sessions.create(params, _options(key))
        return _read(CheckoutSession.from_payload, session, changes=True)

    def retrieve_checkout_session(self, session_id: str) -> CheckoutSession:
        """Look a session up by its id (`cs_…`)."""
        session = self._v1.checkout.sessions.retrieve(_given("session_id", session_id))
        return _read(CheckoutSession.from_payload, session)

    def expire_checkout_session(self, session_id: str, *, key: str) -> CheckoutSession:
        """Close a payment page, so that nobody can pay any more.

        Returns: the session as it is now: `expired`, or `complete` where the buyer was faster.
        """
        try:
            session = self._v1.checkout.sessions.expire(_given("session_id", session_id), None, _options(key))
        except ServiceRefused as refused:
            if refused.status != 400:
                raise
            found = self.retrieve_checkout_session(session_id)
            if found.status == "open":
                raise
            return found
        return _read(CheckoutSession.from_payload, session, changes=True)

    def find_checkout_session(self, *, job_id: str, since: datetime, until: datetime) -> CheckoutSession | None:
        """Find out whether a session was ever created for a job.

        Lists instead of searching: Stripe's search runs up to a minute behind, and no list can be narrowed to our
        metadata. Half an hour after the other, oldest first: a session is nearly always found where the attempts
        began, and a busy shop's day need not fit into the time of one call.

        Args:
            since, until: aware, when the first attempt was made and when no later one can have been; five minutes'
                margin for clocks is added on both sides.
        Raises:
            ServiceUnavailable: also when half an hour's sessions are too many for one call.
        """
        start, end = _unix("since", since - CLOCK_MARGIN), _unix("until", until + CLOCK_MARGIN)
        step = int(LIST_SLICE.total_seconds())
        for first in range(start, end + 1, step):
            created = {"gte": first, "lt": min(first + step, end + 1)}
            with self._transport.budget(LIST_SECONDS):
                for payload in _pages(self._v1.checkout.sessions.list, {"created": created}):
                    if _parse(lambda found: (found.get("metadata") or {}).get("job_id"), payload) == job_id:
                        return _parse(CheckoutSession.from_payload, payload)
        return None

    def retrieve_payment_intent(self, intent_id: str) -> PaymentIntent:
        """Look a payment intent up by its id (`pi_…`)."""
        intent = self._v1.payment_intents.retrieve(_given("intent_id", intent_id))
        return _read(PaymentIntent.from_payload, intent)

    def retrieve_charge_intent(self, charge_id: str) -> str | None:
        """Name the payment intent of a charge (`ch_…`); None for a charge made without one."""
        charge = self._v1.charges.retrieve(_given("charge_id", charge_id))
        return _read(lambda payload: identifier(payload.get("payment_intent")), charge)

    def create_refund(
        self,
        *,
        payment_intent: str,
        amount_cents: int,
        reason: Literal["duplicate", "requested_by_customer"] | None,
        metadata: Mapping[str, str],
        key: str,
    ) -> StripeRefund:
        """Return money to the buyer once, however often it is called.

        Args:
            amount_cents: minor units of the charge's currency, 1..captured.
            reason: Stripe's own list; `fraudulent` would block-list the buyer. Free text goes to metadata.
            metadata: at least what tells our refunds apart when they are listed past the horizon.
            key: unchanged across retries.
        Returns: the refund as Stripe recorded it, `pending` perhaps.
        Raises:
            ServiceUnavailable: outcome unknown; same key again within KEY_HORIZON, `list_refunds` past it.
            ServiceRefused: final; `charge_already_refunded` when nothing is left.
        Source: Stripe API reference, create a refund.
        """
        _positive("amount_cents", amount_cents)
        params: RefundCreateParams = {
            "payment_intent": _given("payment_intent", payment_intent),
            "amount": amount_cents,
            "metadata": dict(metadata),
        }
        if reason:
            params["reason"] = reason
        refund = self._v1.refunds.create(params, _options(key))
        return _read(StripeRefund.from_payload, refund, changes=True)

    def retrieve_refund(self, refund_id: str) -> StripeRefund:
        """Look a refund up by its id (`re_…`)."""
        return _read(StripeRefund.from_payload, self._v1.refunds.retrieve(_given("refund_id", refund_id)))

    def list_refunds(self, *, payment_intent: str) -> list[StripeRefund]:
        """All refunds of a payment, newest first, whoever made them."""
        params = {"payment_intent": _given("payment_intent", payment_intent)}
        with self._transport.budget(LIST_SECONDS):
            return [
                _parse(StripeRefund.from_payload, payload) for payload in _pages(self._v1.refunds.list, params)
            ]

    def list_events(
        self, *, since: datetime, types: Sequence[str] = (), undelivered_only: bool = False, after: str = ""
    ) -> Iterator[dict[str, Any]]:
        """All events since then, newest first, page by page as the caller goes on.

        Args:
            since: aware; Stripe keeps events for 30 days.
            types: at most 20; none means all.
            undelivered_only: those that no endpoint of ours has taken yet.
            after: go on behind this event's id, where an earlier listing with the same filters stopped.
        Returns: bodies as a webhook would bring them.
        """
        if len(types) > EVENT_TYPES_MAX:
            raise InvalidInput("types", f"Stripe takes at most {EVENT_TYPES_MAX}")
        params: dict[str, Any] = {"created": {"gte": _unix("since", since)}}
        if types:
            params["types"] = list(types)
        if undelivered_only:
            params["delivery_success"] = False
        return _pages(self._v1.events.list, params, after)

    def list_bodies(self, kind: ListedKind, *, since: datetime, after: str = "") -> Iterator[dict[str, Any]]:
        """Whole objects made since then, newest first, page by page as the caller goes on; see `list_events`."""
        listed: Mapping[str, Callable[..., Any]] = {
            "refund": self._v1.refunds.list, "dispute": self._v1.disputes.list,
        }  # fmt: skip
        return _pages(listed[kind], {"created": {"gte": _unix("since", since)}}, after)

    def retrieve_body(self, kind: RetrievedKind, object_id: str) -> dict[str, Any]:
        """One whole object, as an event about it would carry it."""
        retrieve: Mapping[str, Callable[..., Any]] = {
            "session": self._v1.checkout.sessions.retrieve, "intent": self._v1.payment_intents.retrieve,
            "refund": self._v1.refunds.retrieve,
        }  # fmt: skip
        return _read(dict, retrieve[kind](_given("object_id", object_id)))


def _options(key: str) -> stripe.RequestOptions:
    if not 0 < len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise InvalidInput("key", "must be 1 to 255 printable ASCII characters")
    return {"idempotency_key": key}


def _given(field: str, value: str) -> str:
    # An empty id would ask for the list instead of one object.
    if not value:
        raise InvalidInput(field, "is empty")
    return value


def _positive(field: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidInput(field, "must be a whole number above 0")


def _unix(field: str, moment: datetime) -> int:
    if moment.utcoffset() is None:
        raise InvalidInput(field, "must be an aware datetime")
    return int(moment.timestamp())


def _pages(
    fetch: Callable[[Any], stripe.StripeObject], params: Mapping[str, Any], after: str = ""
) -> Iterator[dict[str, Any]]:
    # Not the library's auto_paging_iter: that one follows an address out of the answer.
    cursor: dict[str, str] = {"starting_after": after} if after else {}
    while True:
        data, more = _read(
            lambda page: (list(page["data"]), flag(page["has_more"])),
            fetch({**params, "limit": PAGE_SIZE, **cursor}),
        )
        yield from data
        if not more:
            return
        following = {"starting_after": _parse(lambda page: text(page["data"][-1]["id"]), {"data": data})}
        if following == cursor:
            raise ServiceUnavailable("stripe", "the list does not move on", code="odd_answer")
        cursor = following


def _read(parse: Callable[[Mapping[str, Any]], T], answer: stripe.StripeObject, *, changes: bool = False) -> T:
    return _parse(parse, answer.to_dict(for_json=True), changes=changes)


def _parse(parse: Callable[[Mapping[str, Any]], T], payload: Mapping[str, Any], *, changes: bool = False) -> T:
    try:
        return parse(payload)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
        raise ServiceUnavailable(
            "stripe", "an answer lacks what was asked for", code="odd_answer", outcome_unknown=changes
        ) from error
