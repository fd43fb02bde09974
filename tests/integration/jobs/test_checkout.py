"""Owns the proof of each promise about the checkout, one sentence a test. Called by pytest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from smi_workflow.engine.points import Point, watching
from smi_workflow.errors import SmiError
from tests.support.apps import picture, running_shop
from tests.support.sales import SIZE, Providers, Sales, open_sales

KEY = "an order of ours"


class Died(BaseException):
    """The process is gone: nobody catches this."""


def sessions(sales: Sales) -> list[dict[str, Any]]:
    """Every checkout session at Stripe."""
    found: list[dict[str, Any]] = sales.ledger()["sessions"]
    return found


def die_at(sales: Sales, number: int) -> Point | None:
    """Order, and die at this passing of a point; returns which, or None where the order was through before."""
    passed: list[Point] = []

    def probe(point: Point) -> None:
        passed.append(point)
        if len(passed) >= number:
            # Again and again, so that nothing tidies up behind it.
            raise Died

    with watching(probe):
        try:
            sales.order(idempotency_key=KEY)
        except Died:
            return passed[number - 1]
    return None


def test_job_session_and_url_come_back_in_one_answer(tmp_path: Path) -> None:
    with running_shop(tmp_path) as shop:
        told = shop.order()
        job = shop.job(told["job_id"])
        (session,) = shop.sandbox.stripe.ledger()["sessions"]
        assert told["checkout_url"] == job.checkout_url == session["url"]
        assert (session["id"], session["status"]) == (job.stripe_checkout_session_id, "open")
        assert told["status"] == "awaiting_payment"


@pytest.mark.parametrize("comes_back", [True, False], ids=["the buyer comes back", "the buyer is gone"])
def test_wherever_an_order_dies_nothing_is_payable_that_we_do_not_know_of(
    sqlite_url: str, tmp_path: Path, providers: Providers, comes_back: bool
) -> None:
    """The process dies at every point that an order passes; the relay and the buyer do what they would do then."""
    number, died = 0, {Point.SOURCE_KEPT}
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        with open_sales(f"sqlite:///{folder / 'shop.sqlite3'}", folder, providers) as sales:
            point = die_at(sales, number)
            if point is None:
                break
            died.add(point)
            sales.advance(seconds=sales.app.settings.lease_seconds + 1)
            if comes_back:
                sales.order(idempotency_key=KEY)
            sales.work()
            jobs = sales.app.jobs.get_jobs()
            assert len(jobs) <= 1
            assert [session["id"] for session in sessions(sales)] == [
                job.stripe_checkout_session_id for job in jobs
            ], f"after dying at {point}, passing {number}"
            for job in jobs:
                sales.pay(job)
                sales.deliver()
                assert sales.job(job.job_id).payment_status == "paid"
            assert jobs or not comes_back
    passed = {Point.ORDER_WRITTEN, Point.CALL_READY, Point.CALL_ANSWERED, Point.COMMITTED, Point.CHECKOUT_OPENED}
    assert died >= passed | {Point.CLAIMED, Point.HANDLED, Point.ROW_WRITTEN, Point.WORK_DONE}


def test_session_and_payment_intent_carry_our_metadata(sales: Sales) -> None:
    job = sales.order()
    (session,) = sessions(sales)
    assert session["metadata"] == {"job_id": job.job_id}
    sales.pay(job)
    (intent,) = sales.ledger()["intents"]
    assert intent["metadata"] == {"job_id": job.job_id}


@pytest.mark.parametrize("hours", [0.6, 2.0, 24.0])
def test_the_session_ends_when_our_deadline_does(
    sqlite_url: str, tmp_path: Path, providers: Providers, hours: float
) -> None:
    """Stripe's word comes first, ours five minutes later; Stripe takes a little less than 24 hours at most."""
    with open_sales(sqlite_url, tmp_path, providers, payment_timeout_hours=hours) as sales:
        job = sales.order()
        (session,) = sessions(sales)
        ends = datetime.fromtimestamp(session["expires_at"], UTC)
        deadline = sales.effect("payment_deadline", job.job_id).due_at
        assert ends < deadline <= ends + timedelta(minutes=10, seconds=1)
        assert abs(deadline - sales.clock.now() - timedelta(hours=hours)) < timedelta(minutes=6)
        sales.advance_to("payment_deadline", job.job_id)
        sales.work()
        assert sales.job(job.job_id).status == "abandoned"
        assert [one["status"] for one in sessions(sales)] == ["expired"]


def test_where_the_buyer_lands_is_a_setting(sqlite_url: str, tmp_path: Path, providers: Providers) -> None:
    where = {
        "success_url": "https://shop.example/well/{JOB_ID}?from=stripe", "cancel_url": "https://shop.example/{JOB_ID}"
    }  # fmt: skip
    with open_sales(sqlite_url, tmp_path, providers, **where) as sales:
        job = sales.order()
        (session,) = sessions(sales)
        assert session["success_url"] == f"https://shop.example/well/{job.job_id}?from=stripe"
        assert session["cancel_url"] == f"https://shop.example/{job.job_id}"


def test_the_browsers_return_changes_nothing(tmp_path: Path) -> None:
    """Whoever opens the page that follows a payment has not paid by that; nor given up by opening the other."""
    with running_shop(tmp_path) as shop:
        shop.sandbox.set_webhook("", "")
        told = shop.order()
        (session,) = shop.sandbox.stripe.ledger()["sessions"]
        pages = [session["success_url"], session["cancel_url"], f"{shop.url}/thanks", f"{shop.url}/cancelled"]

        def rows() -> list[Any]:
            tables = (*shop.app.tables.all(), shop.app.job_tables.jobs, shop.app.job_tables.payments)
            return [list(table.select().dicts()) for table in tables]

        before = rows()
        for _ in range(2):
            for page in pages:
                assert requests.get(page, timeout=10).status_code == 200
            assert rows() == before
            # Paid at Stripe by now, but no webhook has come: the page still decides nothing.
            if shop.sandbox.stripe.ledger()["charges"] == []:
                shop.pay(told["checkout_url"])
        assert shop.job(told["job_id"]).status == "awaiting_payment"


# -- the stranger's image ----------------------------------------------------------------------------------------


@contextmanager
def dripping(content: bytes) -> Iterator[str]:
    """A site that sends an image ever so slowly, and all of it in the end."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            for byte in content[:-1]:
                self.wfile.write(bytes([byte]))
                if over.wait(0.05):
                    break
            self.wfile.write(content[-1:])

        def log_message(self, *args: object) -> None:
            """Silent."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Whoever has waited long enough hangs up."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/p.png"
        finally:
            over.set()
            server.shutdown()


def test_the_image_is_fetched_measured_and_kept_before_anybody_can_pay(sales: Sales) -> None:
    """What is upscaled is our copy, whatever lies at the address by then."""
    seen: list[tuple[Point, int]] = []
    with watching(lambda point: seen.append((point, len(sessions(sales))))):
        job = sales.order()
    kept = seen.index((Point.SOURCE_KEPT, 0))
    assert kept < seen.index((Point.ORDER_WRITTEN, 0)) < seen.index((Point.CHECKOUT_OPENED, 1))
    assert sales.app.storage.path(job.source_file).read_bytes() == picture(*SIZE)
    sales.site.files["/p.png"] = picture(500, 500)
    sales.pay(job)
    sales.deliver()
    sales.perform("submit_upscale", job.job_id)
    assert sales.submissions()[0]["source_size"] == SIZE


@pytest.mark.parametrize(
    "changes",
    [{"source_bytes_max": 100}, {"output_pixels_max": 16 * SIZE[0] * SIZE[1] - 1}, {"fetch_timeout_seconds": 0.3}],
    ids=["bytes", "pixels", "seconds"],
)
def test_an_image_beyond_a_limit_is_never_sold(
    sqlite_url: str, tmp_path: Path, providers: Providers, changes: dict[str, Any]
) -> None:
    with open_sales(sqlite_url, tmp_path, providers, **changes) as sales, dripping(picture(*SIZE)) as slow:
        where = {"image_url": slow} if "fetch_timeout_seconds" in changes else {}
        with pytest.raises(SmiError):
            sales.order(**where)
        assert sales.app.jobs.get_jobs() == []
        assert sessions(sales) == []
