"""A whole sale in one process, over real HTTP and SMTP: delivered, or the money goes back. Called by pytest."""

from __future__ import annotations

import io
from pathlib import Path

import requests
from PIL import Image

from tests.support.apps import running_shop


def test_a_sale_is_delivered(tmp_path: Path) -> None:
    with running_shop(tmp_path) as shop:
        told = shop.order((60, 40))
        assert told["status"] == "awaiting_payment"
        assert told["amount"] == "0.50"
        back = shop.pay(told["checkout_url"])
        assert back == f"{shop.url}/jobs/{told['job_id']}?from=checkout"
        assert told["job_id"] in requests.get(back, timeout=10).text
        shop.work_until(lambda: shop.job(told["job_id"]).status == "completed")
        shop.work_until(lambda: shop.job(told["job_id"]).email_sent)

        job = shop.job(told["job_id"])
        triggers = shop.triggers(job.job_id)
        # Its own event may come at any moment.
        triggers.remove("charge_noted")
        assert triggers == [
            "create", "checkout_opened", "payment_received", "upscale_started", "upscale_delivered", "complete",
            "notice_sent",
        ]  # fmt: skip
        assert (job.paid_cents, job.refunded_cents, job.payment_status) == (50, 0, "paid")
        (mail,) = shop.mails()
        answer = requests.get(f"{shop.url}{shop.download_path(mail)}", timeout=10)
        assert job.upscaled_file_path is not None
        assert answer.content == shop.app.storage.path(job.upscaled_file_path).read_bytes()
        assert answer.headers["Content-Disposition"] == f"attachment; filename={job.job_id}-4x.png"
        with Image.open(io.BytesIO(answer.content)) as image:
            assert image.size == (240, 160)
        asked = requests.get(f"{shop.url}/api/v1/jobs/{job.job_id}", timeout=10).json()
        assert asked["progress"] == "Your image is ready. We have sent you the download link by e-mail."

        # Upsampler fetched our copy, by a signed link that it alone was given.
        (submission,) = shop.sandbox.upsampler.ledger()["submissions"]
        assert submission["source_url"].startswith(f"{shop.url}/source/{job.job_id}/")
        assert submission["source_size"] == (60, 40)
        assert [call["status"] for call in submission["deliveries"]] == [200]


def test_a_failed_upscale_is_refunded(tmp_path: Path) -> None:
    with running_shop(tmp_path, refund_delay_minutes=0) as shop:
        shop.sandbox.upsampler.faults.add({"result": True}, {"kind": "fail", "text": "No GPU is free"})
        job = shop.sell()
        assert (job.status, job.failure_code) == ("failed", "upsampler_failed")
        shop.work_until(lambda: shop.job(job.job_id).refunded_cents > 0)
        shop.work()

        job = shop.job(job.job_id)
        assert (job.paid_cents, job.refunded_cents, job.refunding_cents) == (50, 50, 0)
        table = shop.app.job_tables.refunds
        (refund,) = table.select()
        assert (refund.state, refund.cents, refund.job_id) == ("succeeded", 50, job.job_id)
        assert job.upscaled_file_path is None
        assert sorted(mail.subject for mail in shop.mails()) == [
            "We could not upscale your image: your money goes back",
            "We have returned $0.50",
        ]
        asked = requests.get(f"{shop.url}/api/v1/jobs/{job.job_id}", timeout=10).json()
        assert asked["progress"] == "Your image could not be made. Your money was sent back."
        # Stripe's own books agree.
        (charge,) = shop.sandbox.stripe.ledger()["charges"]
        assert charge["amount_refunded"] == charge["amount"] == 50


def test_a_second_order_with_the_same_key_is_the_same_job(tmp_path: Path) -> None:
    with running_shop(tmp_path) as shop:
        shop.order()
        order = {
            "image_url": f"{shop.site.url}/photo.png",
            "resolution": "4x",
            "image_width": 60,
            "image_height": 40,
        }
        headers = {"Idempotency-Key": "cart-1"}
        first, second = (
            requests.post(f"{shop.url}/api/v1/jobs", json=order, headers=headers, timeout=10) for _ in range(2)
        )
        assert (first.status_code, second.status_code) == (201, 201)
        assert first.json() == second.json()
        other = requests.post(
            f"{shop.url}/api/v1/jobs", json={**order, "resolution": "8x"}, headers=headers, timeout=10
        )
        assert (other.status_code, other.json()["field"]) == (422, "Idempotency-Key")
        assert shop.app.job_tables.jobs.select().count() == 2
