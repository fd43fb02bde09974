"""Owns the providers of a chaos run: the sandbox as a process, its misbehaviour, its ledgers, the bank's whims.

Called by system.py; it speaks to the sandbox over HTTP alone.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from tests.chaos.servers import wait_for
from tests.support.contracts import REPOSITORY
from tests.support.sandbox import AUTH, WEBHOOK_SECRET

Rule = tuple[str, dict[str, Any], dict[str, Any], float]
PATHS = {
    "sessions": "checkout/sessions", "intents": "payment_intents", "charges": "charges", "refunds": "refunds",
    "disputes": "disputes", "events": "events",
}  # fmt: skip
SERVERS = ("stripe", "upsampler", "mail_http")
STRIPE_API, UPSAMPLER_API, RESULTS = {"path": "/v1/"}, {"path": "/api/v1/"}, {"path": "/results/"}
ANY_EVENT, CALLBACK = {"webhook": "[!u]*"}, {"webhook": "upsampler.*"}
RESULT, REFUND, RCPT, DATA = {"result": True}, {"refund": True}, {"smtp": "rcpt"}, {"smtp": "data"}
HANG_SECONDS = 8.0
# Stripe tries for three days: what is lost is lost on purpose.
GIVE_UP_SECONDS = 4 * 3600.0

# Server, what is hit, what happens, how likely. About one in ten of everything goes wrong.
FAULTS: tuple[Rule, ...] = (
    ("stripe", {"path": "/v1/checkout/sessions", "method": "POST"}, {"kind": "status", "status": 500}, 0.005),
    ("stripe", STRIPE_API, {"kind": "status", "status": 503}, 0.02),
    ("stripe", STRIPE_API, {"kind": "status", "status": 500, "after": True, "remember": False}, 0.01),
    ("stripe", STRIPE_API, {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}}, 0.02),
    ("stripe", STRIPE_API, {"kind": "reset"}, 0.01),
    ("stripe", STRIPE_API, {"kind": "reset_after"}, 0.015),
    ("stripe", STRIPE_API, {"kind": "hang", "seconds": HANG_SECONDS}, 0.005),
    ("stripe", STRIPE_API, {"kind": "slow", "seconds": 2}, 0.01),
    ("stripe", STRIPE_API, {"kind": "garbage"}, 0.005),
    ("stripe", ANY_EVENT, {"kind": "lost"}, 0.02),
    ("stripe", ANY_EVENT, {"kind": "duplicate", "copies": 2}, 0.03),
    ("stripe", ANY_EVENT, {"kind": "delay", "seconds": 6}, 0.03),
    ("stripe", ANY_EVENT, {"kind": "early"}, 0.01),
    ("stripe", ANY_EVENT, {"kind": "twin"}, 0.01),
    ("stripe", REFUND, {"kind": "pending"}, 0.04),
    ("stripe", REFUND, {"kind": "requires_action"}, 0.02),
    ("stripe", REFUND, {"kind": "failed"}, 0.04),
    ("upsampler", UPSAMPLER_API, {"kind": "status", "status": 503}, 0.02),
    ("upsampler", UPSAMPLER_API, {"kind": "status", "status": 500, "after": True}, 0.01),
    ("upsampler", UPSAMPLER_API, {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}}, 0.02),
    ("upsampler", UPSAMPLER_API, {"kind": "reset"}, 0.01),
    ("upsampler", UPSAMPLER_API, {"kind": "reset_after"}, 0.015),
    ("upsampler", UPSAMPLER_API, {"kind": "hang", "seconds": HANG_SECONDS}, 0.005),
    ("upsampler", UPSAMPLER_API, {"kind": "slow", "seconds": 2}, 0.01),
    ("upsampler", UPSAMPLER_API, {"kind": "garbage"}, 0.005),
    ("upsampler", RESULTS, {"kind": "status", "status": 503}, 0.05),
    ("upsampler", RESULTS, {"kind": "reset_after"}, 0.05),
    ("upsampler", RESULT, {"kind": "fail"}, 0.03),
    ("upsampler", RESULT, {"kind": "fail_at_submit"}, 0.02),
    ("upsampler", RESULT, {"kind": "never"}, 0.01),
    ("upsampler", RESULT, {"kind": "wrong_dimensions"}, 0.015),
    ("upsampler", RESULT, {"kind": "not_an_image"}, 0.01),
    ("upsampler", RESULT, {"kind": "truncated"}, 0.015),
    ("upsampler", CALLBACK, {"kind": "lost"}, 0.03),
    ("upsampler", CALLBACK, {"kind": "duplicate", "copies": 2}, 0.03),
    ("upsampler", CALLBACK, {"kind": "delay", "seconds": 6}, 0.03),
    ("upsampler", CALLBACK, {"kind": "early"}, 0.01),
    ("mail_http", RCPT, {"kind": "refuse", "status": 450, "text": "4.2.0 Greylisted"}, 0.04),
    ("mail_http", RCPT, {"kind": "refuse", "status": 550, "text": "5.7.1 Not today"}, 0.01),
    ("mail_http", DATA, {"kind": "reset"}, 0.01),
    ("mail_http", DATA, {"kind": "reset_after"}, 0.02),
    ("mail_http", DATA, {"kind": "slow", "seconds": 3}, 0.02),
)


class Providers:
    """Stripe, Upsampler and a mail server in one process that nobody kills: their books are the evidence."""

    def __init__(self, folder: Path, environment: Mapping[str, str], webhook_url: str, seed: int) -> None:
        folder.mkdir()
        ready = folder / "ready.json"
        with (folder / "process.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "smi_workflow.sandbox", "--folder", folder, "--ready-file", ready,
                 "--webhook-url", webhook_url, "--webhook-secret", WEBHOOK_SECRET, "--seed", str(seed),
                 "--work-seconds", "1.0", "--give-up-seconds", str(GIVE_UP_SECONDS)],
                cwd=REPOSITORY, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(ready.exists, "the sandbox")
        self.where: dict[str, str] = json.loads(ready.read_text())
        self.struck: Counter[str] = Counter()

    def misbehave(self) -> None:
        """From now on, about one in ten of everything goes wrong."""
        for server, match, fault, probability in FAULTS:
            rule = {"match": match, "fault": fault, "times": None, "probability": probability}
            self.post(server, "faults", rule)

    def behave(self) -> None:
        """No more faults; what was committed is counted."""
        for server in SERVERS:
            for rule in requests.get(f"{self.where[server]}/_sandbox/faults", timeout=30).json()["faults"]:
                where = "+".join(str(value) for value in rule["match"].values())
                kind = rule["fault"]["kind"]
                self.struck[f"{server.split('_')[0]} {where} {kind}"] += rule["taken"]
            requests.delete(f"{self.where[server]}/_sandbox/faults", timeout=30).raise_for_status()

    def ledger(self, server: str) -> dict[str, Any]:
        """What a provider has on its own books."""
        answer = requests.get(f"{self.where[server]}/_sandbox/ledger", timeout=120)
        answer.raise_for_status()
        return dict(answer.json())

    def post(self, server: str, path: str, body: Mapping[str, Any]) -> Any:
        """Pull a lever below /_sandbox/; raises requests.HTTPError when it is refused."""
        answer = requests.post(f"{self.where[server]}/_sandbox/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def travel(self, seconds: float) -> None:
        """Let Stripe live so far in the future: sessions expire."""
        self.post("stripe", "clock", {"advance_seconds": seconds})

    def posts_under_way(self) -> int:
        """Webhooks and callbacks that are still to be taken."""
        events = self.ledger("stripe")["events"]
        letters = [event["deliveries"] for event in events if event["pending_webhooks"]]
        letters += [one["deliveries"] for one in self.ledger("upsampler")["submissions"]]
        return sum(1 for attempts in letters if attempts and attempts[-1]["outcome"] == "failed"
                   and not any(one["outcome"] == "delivered" for one in attempts))  # fmt: skip


class Bank:
    """What happens at Stripe without anybody's asking: debits settle, refunds bounce, buyers dispute.

    Args:
        chance: the run's own; which object it falls on depends on what there is.
    """

    def __init__(self, providers: Providers, chance: random.Random) -> None:
        self.acts: Counter[str] = Counter()
        self._providers = providers
        self._chance = chance

    def run(self, stop: threading.Event, pause_seconds: float) -> None:
        """Act now and then, until told to stop."""
        while not stop.wait(pause_seconds):
            with suppress(requests.RequestException):
                book = self._glance()
                self._settle(book, everything=False)
                self._whim(book)

    def settle_everything(self) -> None:
        """Decide all that still waits for the bank."""
        self._settle(self._providers.ledger("stripe"), everything=True)

    def _glance(self) -> dict[str, list[dict[str, Any]]]:
        """The newest of each kind, through the API, which may fail like anybody's call."""
        book = {}
        for kind, path in PATHS.items():
            answer = requests.get(
                f"{self._providers.where['stripe']}/v1/{path}", params={"limit": 100}, headers=AUTH, timeout=30
            )
            answer.raise_for_status()
            book[kind] = list(answer.json()["data"])
        return book

    def _settle(self, book: Mapping[str, Any], *, everything: bool) -> None:
        debited = {one["id"] for one in book["intents"] if one["status"] == "processing"}
        for session in book["sessions"]:
            if session["payment_intent"] in debited and (everything or self._chance.random() < 0.3):
                outcome = "succeeded" if self._chance.random() < 0.7 else "failed"
                self._pull(f"stripe/sessions/{session['id']}/settle", f"debit {outcome}", outcome=outcome)
        for refund in book["refunds"]:
            waits = refund["status"] in ("pending", "requires_action")
            if waits and (everything or self._chance.random() < 0.2):
                # At the end nobody waits for another round of refused refunds.
                good = everything or self._chance.random() < 0.8
                outcome = "succeeded" if good else self._chance.choice(("failed", "canceled"))
                self._pull(f"stripe/refunds/{refund['id']}/settle", f"refund {outcome}", outcome=outcome)
        for dispute in book["disputes"]:
            is_open = dispute["status"] in ("needs_response", "under_review")
            if is_open and (everything or self._chance.random() < 0.1):
                outcome = self._chance.choice(("won", "lost"))
                self._pull(
                    f"stripe/dashboard/disputes/{dispute['id']}/close", f"dispute {outcome}", outcome=outcome
                )

    def _whim(self, book: Mapping[str, Any]) -> None:
        back = {refund["charge"] for refund in book["refunds"]} | {one["charge"] for one in book["disputes"]}
        whole = [one for one in book["charges"] if one["status"] == "succeeded" and one["id"] not in back]
        settled = [one for one in book["refunds"] if one["status"] == "succeeded"]
        whim = self._chance.random()
        if whim < 0.25 and whole:
            charge = self._chance.choice(whole)["id"]
            self._pull("stripe/dashboard/disputes", "dispute opened", charge=charge)
        elif whim < 0.45 and settled:
            self._pull(
                f"stripe/refunds/{self._chance.choice(settled)['id']}/settle", "refund sent back", outcome="failed"
            )
        elif whim < 0.8 and book["events"]:
            self._pull(f"stripe/events/{self._chance.choice(book['events'])['id']}/resend", "event sent again")
        elif whole:
            self._pay_again(self._chance.choice(whole))

    def _pay_again(self, charge: Mapping[str, Any]) -> None:
        """A second session for the same job, as a call whose answer was lost may leave one; the buyer pays it."""
        metadata = charge["metadata"]
        form = {
            "mode": "payment", "success_url": "http://shop.example/thanks",
            "line_items[0][quantity]": 1, "line_items[0][price_data][currency]": charge["currency"],
            "line_items[0][price_data][unit_amount]": charge["amount"],
            "line_items[0][price_data][product_data][name]": "the same again",
            **{f"metadata[{name}]": value for name, value in metadata.items()},
            **{f"payment_intent_data[metadata][{name}]": value for name, value in metadata.items()},
        }  # fmt: skip
        answer = requests.post(
            f"{self._providers.where['stripe']}/v1/checkout/sessions", data=form, timeout=30,
            headers=AUTH,
        )  # fmt: skip
        answer.raise_for_status()
        self._pull(f"stripe/sessions/{answer.json()['id']}/pay", "paid twice")

    def _pull(self, path: str, what: str, **body: str) -> None:
        # What has changed meanwhile is refused, as a bank's own desk would.
        with suppress(requests.HTTPError):
            self._providers.post("stripe", path, body)
            self.acts[what] += 1
