"""Owns whole sales by real processes, of which one may kill itself at a point; and the books afterwards.

Called by tests/acceptance/test_crash_points.py. A lane is one installation with a sandbox of its own; it makes one
sale after the other, so that each crash concerns one sale. Several lanes run side by side.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import requests

from smi_workflow.engine.tables import EffectState, EventState
from smi_workflow.jobs.model import Job, JobStatus
from smi_workflow.sandbox import Sandbox
from tests.support.contracts import REPOSITORY
from tests.support.crash_books import Mark, books_of, plain_session
from tests.support.crashing import ARMED, FIRED, PROBE_FOLDER, TRACE, WarmParent, kill_group
from tests.support.receivers import SECRET, Receiver
from tests.support.stack import Stack

ROLES = ("web", "downloads", "urgent", "slow", "hooks", "relay")
SIZE = (60, 40)
BUYER, ADMIN = "buyer@example.com", "admin@example.com"
NEVER: list[Any] = []
PATIENCE_SECONDS = 60.0
LOOK_SECONDS = 0.1
STILL_SECONDS = 0.5
# Of the events that change nothing, `charge.succeeded` stands for all.
EVENTS = ("checkout.session.*", "charge.succeeded", "refund.*", "charge.refund.updated")
# Leases lapse as soon as settings let them; everything else only has to be rare or soon.
SETTINGS = {
    "SMI_LEASE_SECONDS": "2", "SMI_RING_AGAIN_SECONDS": "0.5", "SMI_SWEEP_SECONDS": "0.1",
    "SMI_POLL_SECONDS": "60", "SMI_ADMIN_EMAIL": ADMIN, "SMI_TABLE_PREFIX": "wp_",
    "WEB_CONCURRENCY": "1", "WEB_THREADS": "4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sale:
    """One kind of sale.

    Attributes:
        only: what it does that no sale before it did; whose points are its own.
        timers: what the relay rings in it, and nobody else.
    """

    name: str
    is_over: Callable[[Job], bool]
    settings: Mapping[str, str] = field(default_factory=dict)
    upsampler_faults: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = ()
    stripe_faults: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = ()
    settle_refunds: bool = False
    only: tuple[str, ...] = ("*",)
    timers: tuple[str, ...] = ()


def _is_refunded(job: Job) -> bool:
    return job.status == JobStatus.FAILED and 0 < job.refunded_cents == job.paid_cents


_FAILS = (({"result": True}, {"kind": "fail"}),)
# Told late, so that whose word comes first does not depend on the machine.
_LATE = tuple(
    ({"webhook": kind}, {"kind": "delay", "seconds": seconds})
    for kind, seconds in (("refund.*", 0.3), ("charge.refund.*", 0.6))
)

SALES = (
    Sale(
        "delivered", lambda job: job.status == JobStatus.COMPLETED and job.email_sent,
        # After the payment is on record, and long before the image is done: it is noted, and waits for nothing.
        stripe_faults=(({"webhook": "charge.succeeded"}, {"kind": "delay", "seconds": 0.15}),),
    ),
    Sale(
        "refunded", _is_refunded, upsampler_faults=_FAILS, stripe_faults=_LATE,
        # Until Upsampler's verdict it goes as the one above.
        only=("upsampler.*", "send_failure_notice", "send_refund_notice", "tell_admin", "refund_due",
              "submit_refund", "refund.*", "charge.refund.*"),
    ),
    Sale(
        "slowly_refunded", _is_refunded, upsampler_faults=_FAILS, settle_refunds=True,
        stripe_faults=(({"refund": True}, {"kind": "pending"}), *_LATE),
        only=("submit_refund", "refund.*", "charge.refund.*", "send_refund_notice"),
    ),
    Sale(
        "polled", lambda job: job.status == JobStatus.COMPLETED and job.email_sent,
        settings={"SMI_POLL_SECONDS": "1"},
        upsampler_faults=(({"webhook": "upsampler.*"}, {"kind": "lost"}),),
        only=("submit_upscale", "poll_upscale"), timers=("poll_upscale",),
    ),
    Sale(
        "expired", lambda job: job.status == JobStatus.COMPLETED and not job.upscaled_file_path,
        settings={"SMI_DOWNLOAD_EXPIRY_HOURS": str(3 / 3600)},
        only=("warn_expiry", "expire_download", "remove_file"), timers=("warn_expiry", "expire_download"),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One passing of one point in one process: where it is killed."""

    sale: str
    role: str
    activity: str
    point: str
    number: int

    def __str__(self) -> str:
        again = f"-{self.number}" if self.number > 1 else ""
        return f"{self.sale}-{self.role}-{self.activity}-{self.point}{again}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sale left behind: its books, whether somebody died, the points passed until then."""

    books: Counter[str]
    has_crashed: bool
    passed: tuple[Case, ...]
    story: str


class Lane(Stack):
    """An installation whose processes can be told where to die."""

    def __init__(
        self, folder: Path, sandbox: Sandbox, receiver: Receiver, parent: WarmParent, image_url: str,
        **settings: str,
    ) -> None:  # fmt: skip
        told = {"SMI_HOOK_URLS": receiver.url, "SMI_HOOK_SECRET": SECRET}
        super().__init__(folder, sandbox, **{**SETTINGS, **told, PROBE_FOLDER: str(folder), **settings})
        self._receiver = receiver
        self._parent = parent
        self._image_url = image_url
        self._normal = dict(self.environment)
        self._groups: dict[str, int] = {}
        self._sale: Sale | None = None
        self._http = plain_session()
        self._has_crashed = False
        self._story_length = 0
        self._still_since = 0.0
        config = folder / "gunicorn.conf.py"
        # Without its look before the start, which imports everything once more.
        config.write_text(f"exec(open({str(REPOSITORY / 'config/gunicorn.conf.py')!r}).read())\ndel on_starting\n")
        self.commands = {
            role: re.sub(r"\$\{(\w+):-[^}]*\}", lambda found: self.environment[found[1]], self.commands[role])
            .replace("config/gunicorn.conf.py", str(config))
            for role in ROLES
        }  # fmt: skip

    def start(self, *names: str) -> None:
        """Start processes; they are ready when they are."""
        for role in names or ROLES:
            log = self.folder / f"{role}.log"
            self._groups[role] = self._parent.start(role, self.commands[role], self.environment, log)

    def kill(self, name: str) -> None:
        """kill -9, its children with it."""
        kill_group(self._groups.pop(name))

    def pay(self, job_id: str, email: str = BUYER) -> None:
        """Press Pay on the job's pay page."""
        url = f"{self.app.jobs.get_job(job_id).checkout_url}/pay"
        answer = self._http.post(url, data={"email": email}, timeout=30, allow_redirects=False)
        assert answer.status_code == 303, answer.text

    def stop(self) -> None:
        """Kill whatever runs and close this thread's connections."""
        for role in list(self._groups):
            self.kill(role)
        self._http.close()
        self.app.close()

    def sell(self, sale: Sale, case: Case | None) -> Outcome:
        """Make one sale from order to end; with a case, one of its processes dies and is started again."""
        self._prepare(sale)
        mark = Mark.of(self.app, self.sandbox)
        key = str(uuid.uuid4())
        try:
            self._arm(key, [case.role, case.activity, case.point, case.number] if case else NEVER)
            job_id = self._order(key)
            self.pay(job_id)
            self._wait(
                lambda: self._is_over(sale, job_id, mark) and self._is_still(), f"the end of {sale.name} {job_id}"
            )
            (self.folder / ARMED).unlink(missing_ok=True)
            story = (self.folder / TRACE).read_text()
            books = books_of(self.app, self.sandbox, self._receiver, job_id, mark)
            return Outcome(books, self._has_crashed, _passed(sale, story), story)
        except BaseException:
            # Whatever went wrong shall not go on into the next sale: that one starts all processes anew.
            self._sale = None
            raise

    # -- the steps of a sale -----------------------------------------------------------------------------------

    def _prepare(self, sale: Sale) -> None:
        if self._sale is None or self._sale.settings != sale.settings:
            for role in list(self._groups):
                self.kill(role)
            for name in (ARMED, FIRED):
                (self.folder / name).unlink(missing_ok=True)
            self.environment = {**self._normal, **sale.settings}
            self.start()
            # Upsampler fetches the source once, and takes no answer for an answer.
            self._wait(partial(self._answers, "SMI_DOWNLOADS_URL"), "downloads to answer")
            self._wait(partial(self._answers, "SMI_PUBLIC_URL"), "web to answer")
        self._sale = sale
        self._set_faults(sale)

    def _set_faults(self, sale: Sale) -> None:
        upsampler, stripe = self.sandbox.upsampler.faults, self.sandbox.stripe.faults
        for book, faults in ((upsampler, sale.upsampler_faults), (stripe, sale.stripe_faults)):
            book.clear()
            for match, fault in faults:
                book.add(match, fault, times=None)

    def _arm(self, key: str, at: list[Any]) -> None:
        self._has_crashed = False
        (self.folder / TRACE).write_text("")
        self._order_death({"case": key, "at": at, "since": datetime.now(UTC).isoformat()})

    def _order_death(self, order: Mapping[str, Any]) -> None:
        draft = self.folder / f"{ARMED}.draft"
        draft.write_text(json.dumps(order))
        draft.rename(self.folder / ARMED)

    def _revive(self) -> None:
        """Start again what has died."""
        fired = self.folder / FIRED
        if not fired.exists():
            return
        order = json.loads(fired.read_text())
        fired.unlink()
        self._has_crashed = True
        self.kill(order["at"][0])
        self.start(order["at"][0])
        self._order_death({**order, "at": NEVER})

    def _wait(self, condition: Callable[[], bool], awaited: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {PATIENCE_SECONDS:g} s in vain for {awaited}\n{self._debris()}")
            self._revive()
            time.sleep(LOOK_SECONDS)

    def _answers(self, url: str) -> bool:
        with contextlib.suppress(requests.RequestException):
            return self._http.get(f"{self.environment[url]}/healthz", timeout=10).ok
        return False

    def _order(self, key: str) -> str:
        """Order as a shop does: again with the same key until there is an answer."""
        body = {
            "image_url": self._image_url, "resolution": "4x", "image_width": SIZE[0], "image_height": SIZE[1],
            "post_id": 1,
        }  # fmt: skip
        answers: list[str] = []

        def has_answered() -> bool:
            with contextlib.suppress(requests.RequestException):
                url = f"{self.environment['SMI_PUBLIC_URL']}/api/v1/jobs"
                answer = self._http.post(url, json=body, headers={"Idempotency-Key": key}, timeout=30)
                if answer.status_code == 201:
                    answers.append(answer.json()["job_id"])
                elif answer.status_code != 503:
                    raise AssertionError(f"the order was answered {answer.status_code}: {answer.text}")
            return bool(answers)

        self._wait(has_answered, "an answer to the order")
        return answers[0]

    def _is_over(self, sale: Sale, job_id: str, mark: Mark) -> bool:
        if sale.settle_refunds:
            self._settle_refunds(job_id)
        return sale.is_over(self.app.jobs.get_job(job_id)) and self._has_told(mark) and self._is_quiet(mark)

    def _is_still(self) -> bool:
        """Whether nobody will pass a point any more: some lie behind the last commit."""
        if self._has_crashed:
            return True
        length = (self.folder / TRACE).stat().st_size
        if length != self._story_length:
            self._story_length, self._still_since = length, time.monotonic()
        return time.monotonic() - self._still_since > STILL_SECONDS

    def _settle_refunds(self, job_id: str) -> None:
        """The bank takes its time, and then agrees."""
        refunds = self.app.job_tables.refunds
        for row in refunds.select().where((refunds.state == "pending") & (refunds.job_id == job_id)):
            url = f"{self.sandbox.stripe.url}/_sandbox/stripe/refunds/{row.stripe_refund_id}/settle"
            self._http.post(url, json={"outcome": "succeeded"}, timeout=10)

    def _has_told(self, mark: Mark) -> bool:
        """Whether the providers have got rid of all that they have to tell."""
        if any(event["pending_webhooks"] for event in mark.stripe(self.sandbox, "events")):
            return False
        return all(
            one.refusal is not None
            or (one.letter is not None and any(a["outcome"] in ("delivered", "lost") for a in one.letter.attempts))
            for one in mark.submissions(self.sandbox)
        )

    def _is_quiet(self, mark: Mark) -> bool:
        """Whether nothing is left to do but what is far away."""
        effects, events = self.app.tables.effects, self.app.tables.events
        is_soon = (effects.state == EffectState.DUE) & (effects.due_at <= datetime.now(UTC) + timedelta(minutes=5))
        is_open = (effects.created_at >= mark.at) & (is_soon | (effects.state == EffectState.CLAIMED))
        is_unread = events.state.in_((EventState.RECEIVED, EventState.PARKED)) & (events.received_at >= mark.at)
        return not (effects.select().where(is_open).exists() or events.select().where(is_unread).exists())

    def _debris(self) -> str:
        effects, events = self.app.tables.effects, self.app.tables.events
        open_effects = effects.select().where(effects.state.in_((EffectState.DUE, EffectState.CLAIMED)))
        open_events = events.select().where(events.state.in_((EventState.RECEIVED, EventState.PARKED)))
        lines = [f"effect {row.name} {row.state} due {row.due_at} {row.last_error}" for row in open_effects]
        lines += [f"event {row.kind} {row.state} {row.reason}" for row in open_events]
        return "\n".join([*lines, (self.folder / TRACE).read_text(), self.last_lines()])


def _passed(sale: Sale, story: str) -> tuple[Case, ...]:
    """The cases of a sale that nobody disturbed."""
    cases = []
    for line in story.splitlines():
        role, activity, point, number = line.split()
        if role == "relay":
            # It looks for ever: the first time counts, and only for what nobody else rings.
            is_own = activity in sale.timers and number == "1"
        else:
            is_own = any(fnmatchcase(activity, pattern) for pattern in sale.only)
        if is_own:
            cases.append(Case(sale.name, role, activity, point, int(number)))
    return tuple(cases)
