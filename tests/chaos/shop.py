"""Owns the buyers of a chaos run, and the site with their images. Called by run.py.

A buyer behaves like a browser: it sends the same order with the same key until it is answered, and pays, or not.
What each buyer ordered is kept here, apart from the product: the checker holds the results against it.
"""

from __future__ import annotations

import heapq
import io
import itertools
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests
from PIL import Image

ORDER_SECONDS = 15.0
PATIENCE_SECONDS = 150.0
BUYERS = 40

# What buyers do once the payment page is open, and how many of them.
PLANS = {
    "pays": 68,
    "pays with two clicks": 5,
    "is declined, then pays": 7,
    "orders twice at once, then pays": 5,
    "pays by bank debit": 4,
    "pays, with an address that bounces": 2,
    "is declined": 3,
    "leaves": 6,
}
DECLINES = ("is declined, then pays", "is declined")
NEVER_PAYS = ("is declined", "leaves")


@dataclass(slots=True)
class Sale:
    """One buyer, from the plan to what came of it."""

    number: int
    plan: str
    size: tuple[int, int]
    factor: int
    colour: tuple[int, int, int]
    email: str
    email_at_order: bool
    waits_seconds: float
    job_id: str = ""
    outcome: str = ""
    others: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Where the site has the image."""
        return f"/{self.number}-{self.size[0]}x{self.size[1]}-{'-'.join(map(str, self.colour))}.png"


def plan_sale(seed: int, number: int, waits_seconds: float) -> Sale:
    """The buyer of this number: the same for the same seed.

    Each has a colour of its own, so that images which are mixed up show.
    """
    chance = random.Random(f"{seed}:sale:{number}")
    plan = chance.choices(list(PLANS), list(PLANS.values()))[0]
    host = f"b{number}.example.com"
    return Sale(
        number=number,
        plan=plan,
        size=(chance.randint(8, 24), chance.randint(8, 24)),
        factor=chance.choice((4, 4, 4, 8)),
        colour=(number % 256, number // 256 % 256, chance.randrange(256)),
        email=f"bounce@{host}" if "bounces" in plan else f"buyer@{host}",
        email_at_order=chance.random() < 0.5,
        waits_seconds=chance.uniform(0, waits_seconds),
    )


Act = Callable[[requests.Session], bool]


@dataclass(frozen=True, slots=True)
class Step:
    """What a buyer does next; `act` returns True when the buyer leaves."""

    act: Act
    sale: Sale


class ImageSite:
    """The shop's web site: makes each image from its address."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Images)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="site", daemon=True).start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


class _Images(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        _, size, red, green, blue = self.path.strip("/").removesuffix(".png").split("-")
        width, height = map(int, size.split("x"))
        file = io.BytesIO()
        Image.new("RGB", (width, height), (int(red), int(green), int(blue))).save(file, "PNG")
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(file.getvalue())))
        self.end_headers()
        self.wfile.write(file.getvalue())

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Shop:
    """Sells: a crowd of buyers that come at a steady pace.

    Args:
        pace_seconds: between two buyers.
    """

    def __init__(self, sales: list[Sale], public_url: str, site_url: str, pace_seconds: float) -> None:
        self.sales = sales
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._public_url = public_url
        self._site_url = site_url
        self._pace_seconds = pace_seconds
        self._lock = threading.Lock()
        self._todo: queue.Queue[Step] = queue.Queue()
        self._waiting: list[tuple[float, int, Step]] = []
        self._order_of_arrival = itertools.count()
        self._threads = [
            threading.Thread(target=self._serve, name=f"buyers-{n}", daemon=True) for n in range(BUYERS)
        ]
        self._gate = threading.Thread(target=self._let_in, name="gate", daemon=True)

    def open(self) -> None:
        """Let buyers in; returns at once."""
        for position, sale in enumerate(self.sales):
            self._later(position * self._pace_seconds, partial(self._visit, sale=sale), sale)
        for thread in (*self._threads, self._gate):
            thread.start()

    def is_done(self) -> bool:
        """Whether every buyer has left."""
        return self.counts["done"] >= len(self.sales)

    def _let_in(self) -> None:
        while True:
            with self._lock:
                while self._waiting and self._waiting[0][0] <= time.monotonic():
                    self._todo.put(heapq.heappop(self._waiting)[2])
            time.sleep(0.02)

    def _later(self, seconds: float, act: Act, sale: Sale) -> None:
        """A buyer who thinks, or is still on the way, keeps nobody from being served."""
        with self._lock:
            item = (time.monotonic() + seconds, next(self._order_of_arrival), Step(act, sale))
            heapq.heappush(self._waiting, item)

    def _serve(self) -> None:
        browser = requests.Session()
        browser.trust_env = False
        while True:
            step = self._todo.get()
            try:
                is_over = step.act(browser)
            except Exception as fault:  # noqa: BLE001 - a buyer that breaks is a finding, and others go on
                self._note(step.sale, "broke", f"buyer {step.sale.number}: {type(fault).__name__}: {fault}")
                is_over = True
            if is_over:
                self._count("done")

    def _visit(self, browser: requests.Session, sale: Sale) -> bool:
        """Order; True when the buyer leaves at that."""
        ordered = self._order_at_once(sale) if "twice at once" in sale.plan else self._order(browser, sale)
        if ordered is None:
            self._note(sale, "gave up ordering")
            return True
        sale.job_id, checkout_url = ordered["job_id"], ordered["checkout_url"]
        self._count("ordered")
        self._later(sale.waits_seconds, partial(self._pay, sale=sale, checkout_url=checkout_url), sale)
        return False

    def _pay(self, browser: requests.Session, sale: Sale, checkout_url: str) -> bool:
        """At the payment page; True, as this is the last step."""
        if sale.plan in DECLINES:
            self._press(browser, f"{checkout_url}/decline", sale)
        if sale.plan in NEVER_PAYS:
            self._note(sale, "did not pay")
            return True
        method = {"method": "delayed"} if sale.plan == "pays by bank debit" else {}
        paid = self._press(browser, f"{checkout_url}/pay", sale, **method)
        if "two clicks" in sale.plan:
            self._press(browser, f"{checkout_url}/pay", sale)
        self._note(sale, "paid" if paid else "came too late to pay")
        # The page where the buyer waits asks how far it is, and may be told off by whatever is down.
        self._patiently(lambda: browser.get(f"{self._public_url}/api/v1/jobs/{sale.job_id}", timeout=5), {200}, 3)
        return True

    def _order(self, browser: requests.Session, sale: Sale, attempt: int = 0) -> dict[str, Any] | None:
        """Send the order until it is answered; one that died unpaid is ordered anew, with another key."""
        order: dict[str, Any] = {
            "image_url": f"{self._site_url}{sale.path}", "resolution": f"{sale.factor}x",
            "image_width": sale.size[0], "image_height": sale.size[1], "post_id": sale.number + 1,
        }  # fmt: skip
        if sale.email_at_order:
            order["email"] = sale.email
        headers = {"Idempotency-Key": f"sale-{sale.number}-{attempt}"}
        answer = self._patiently(
            lambda: browser.post(
                f"{self._public_url}/api/v1/jobs", json=order, headers=headers, timeout=ORDER_SECONDS
            ),
            {201, 409, 422, 400},
            PATIENCE_SECONDS,
        )
        if answer is None:
            return None
        if answer.status_code == 201:
            return dict(answer.json())
        if answer.status_code == 409 and attempt < 3:
            self._count("ordered anew")
            return self._order(browser, sale, attempt + 1)
        self._note(sale, f"refused {answer.status_code}", f"buyer {sale.number}: {answer.text[:300]}")
        return None

    def _order_at_once(self, sale: Sale) -> dict[str, Any] | None:
        """The same order with the same key, from two tabs at the same time."""
        with ThreadPoolExecutor(2) as tabs:
            answers = [one for one in tabs.map(lambda _: self._order(requests.Session(), sale), range(2)) if one]
        if len({one["job_id"] for one in answers}) > 1:
            # Each tab may have had to order anew; the same key must still be the same order.
            sale.others = [one["job_id"] for one in answers[1:]]
            self.faults.append(f"buyer {sale.number}: one key made two orders: {answers}")
        return answers[0] if answers else None

    def _press(self, browser: requests.Session, url: str, sale: Sale, **form: str) -> bool:
        answer = self._patiently(
            lambda: browser.post(url, data={"email": sale.email, **form}, timeout=10, allow_redirects=False),
            {303, 402, 410, 404},
            PATIENCE_SECONDS,
        )
        return answer is not None and answer.status_code == 303

    def _patiently(
        self, send: Callable[[], requests.Response], final: set[int], seconds: float
    ) -> requests.Response | None:
        """Send until one of these is the answer: a browser's patience, and a buyer's hand on Reload."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                answer = send()
                if answer.status_code in final:
                    return answer
                self._count(f"answered {answer.status_code}")
            except requests.RequestException as error:
                self._count(type(error).__name__)
            time.sleep(0.5)
        return None

    def _note(self, sale: Sale, outcome: str, fault: str = "") -> None:
        sale.outcome = outcome
        self._count(outcome)
        if fault:
            with self._lock:
                self.faults.append(fault)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1
