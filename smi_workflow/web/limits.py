"""Owns how often one address may ask, and how many orders are taken in at once. Called by its siblings.

Counted in the broker's Redis, where there is one by URL: then a limit holds over all processes. Elsewhere, and
while Redis is away, each process counts for itself in memory, so that N processes let through up to N times as
much: a limit is there to stop floods, and must never stop the shop. Redis sees digests under our key, no address.
"""

from __future__ import annotations

import hmac
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from flask import request
from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter

from smi_workflow.settings import Settings
from smi_workflow.web.problems import Problem, unavailable

ORDERS, READS, FAILURES = "orders", "reads", "failures"
FAILURES_RATE = "10/minute"
REDIS = ("redis://", "rediss://", "unix://")
# A web thread waits for a counter so long, and then counts by itself for a while.
REDIS_SECONDS, AWAY_SECONDS = 0.5, 10.0
# One stranger's slow server may hold so much of what is taken in at once.
SHARE_OF_ONE = 0.5

log = logging.getLogger(__name__)


class Limits:
    """Counts requests by address and kind."""

    def __init__(self, settings: Settings) -> None:
        rates = {ORDERS: settings.limit_orders, READS: settings.limit_reads, FAILURES: FAILURES_RATE}
        self._rates: dict[str, RateLimitItem] = {
            kind: parse(rate.replace("/", " per ")) for kind, rate in rates.items() if rate != "off"
        }
        self._exempt = [ip_network(network) for network in settings.limit_exempt]
        self._key = settings.secret_keys[0]
        self._behind_proxies = settings.trusted_proxies > 0
        self._said = False
        self._memory = FixedWindowRateLimiter(MemoryStorage())
        self._shared: FixedWindowRateLimiter | None = None
        self._away_until = 0.0
        if settings.broker_url.startswith(REDIS):
            self._shared = FixedWindowRateLimiter(_redis(settings.broker_url))

    def check(self, kind: str) -> None:
        """Count this request.

        Raises:
            Problem: 429, with the time after which to come again.
        """
        self._ask(kind, "hit")

    def check_failures(self) -> None:
        """Refuse whoever has failed too often, without counting.

        Raises:
            Problem: 429.
        """
        self._ask(FAILURES, "test")

    def note_failure(self) -> None:
        """Count a failure of this address."""
        name = self.caller(FAILURES)
        if name is not None:
            self._count(self._rates[FAILURES], "hit", FAILURES, name)

    def _ask(self, kind: str, how: str) -> None:
        rate, name = self._rates.get(kind), self.caller(kind)
        if rate is None or name is None:
            return
        allowed, ends_at = self._count(rate, how, kind, name)
        if not allowed:
            seconds = max(1, math.ceil(ends_at - time.time()))
            raise Problem(
                429,
                f"That was too often. Please try again in {seconds} seconds.",
                headers={"Retry-After": str(seconds)},
            )

    def _count(self, rate: RateLimitItem, how: str, *names: str) -> tuple[bool, float]:
        if self._shared is not None and time.monotonic() >= self._away_until:
            try:
                return _counted(self._shared, rate, how, *names)
            except StorageError as error:
                self._away_until = time.monotonic() + AWAY_SECONDS
                cause = type(error.storage_error).__name__
                log.warning("limits are counted in memory, as Redis is away: %s", cause)
        return _counted(self._memory, rate, how, *names)

    def caller(self, kind: str) -> str | None:
        """The address as it is counted; None for one without limits."""
        try:
            address: Any = ip_address(request.remote_addr or "")
        except ValueError:
            # A socket of this machine has none.
            return None
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        # Failures count for everyone: no network is trusted to guess tokens.
        if kind != FAILURES and any(address in network for network in self._exempt):
            self._warn_of_proxy()
            return None
        # Whoever has one IPv6 address has its whole /64.
        whole = ip_network((address, 64 if address.version == 6 else 32), strict=False)
        return hmac.new(self._key, f"address {whole}".encode(), "sha256").hexdigest()[:32]

    def _warn_of_proxy(self) -> None:
        if not self._said and not self._behind_proxies and "X-Forwarded-For" in request.headers:
            self._said = True
            log.warning("requests come through a proxy: without SMI_TRUSTED_PROXIES nobody behind it is limited")


class Doorway:
    """Lets so many orders in at once, and no one address more than its share: webhooks share the threads.

    A stranger's image may come slowly, and holds its thread meanwhile.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._share = max(1, math.floor(places * SHARE_OF_ONE))
        self._inside: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def passed(self, caller: str | None) -> Iterator[None]:
        """Hold one place.

        Args:
            caller: from `Limits.caller`; None is one without limits, who may have every place.
        Raises:
            Problem: 503, with the time after which to come again.
        """
        name = caller or ""
        with self._lock:
            is_full = self._inside.total() >= self._places
            if is_full or (caller is not None and self._inside[name] >= self._share):
                raise unavailable("Many orders are being taken in just now. Please try again in a moment.")
            self._inside[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside[name] -= 1
                # Empty ones are forgotten: this does not grow with the number of buyers.
                self._inside += Counter()


def _redis(url: str) -> RedisStorage:
    """The broker's server, for counters: short waits, and none of the options that are Dramatiq's."""
    url = f"redis+{url}" if url.startswith("unix://") else url
    return RedisStorage(
        url, wrap_exceptions=True, key_prefix="smi:limits",
        socket_connect_timeout=REDIS_SECONDS, socket_timeout=REDIS_SECONDS,
    )  # fmt: skip


def _counted(limiter: FixedWindowRateLimiter, rate: RateLimitItem, how: str, *names: str) -> tuple[bool, float]:
    allowed = limiter.hit(rate, *names) if how == "hit" else limiter.test(rate, *names)
    return allowed, 0.0 if allowed else limiter.get_window_stats(rate, *names).reset_time
