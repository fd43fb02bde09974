"""The outgoing webhook over real HTTP: signed as the specification says, and what each answer means."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks.webhooks import WebhookVerificationError

from smi_workflow.errors import ServiceError, ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.hooks import HookPoster, Silences
from tests.support.receivers import OLD_SECRET, SECRET, Receiver, running_receiver

BODY = '{"type":"job_completed","timestamp":"2026-03-01T12:00:00+00:00","data":{"job_id":"j","sequence":6}}'
KEY = "s3cret-in-the-path"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as running:
        yield running


def post(receiver: Receiver, *, secrets: tuple[str, ...] = (SECRET,), **changes: Any) -> None:
    """Post one message, as the handler does."""
    poster = HookPoster(secrets, changes.pop("total_seconds", 5.0))
    url = changes.pop("url", f"{receiver.url}/hooks/{KEY}?token={KEY}")
    given = {"receiver": "r1", "message_id": "msg-1", "now": datetime.now(UTC), **changes}
    poster.post(url, BODY, **given)


def test_a_receiver_can_verify_it(receiver: Receiver) -> None:
    post(receiver)
    (message,) = receiver.messages
    assert message.verified()["data"] == {"job_id": "j", "sequence": 6}
    assert (message.id, message.body, message.path) == ("msg-1", BODY, f"/hooks/{KEY}?token={KEY}")
    assert message.headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        message.verified(OLD_SECRET)


def test_the_signature_is_the_specifications() -> None:
    """Its own example, so that no two faults of ours make each other right."""
    then = datetime.fromtimestamp(1614265330, UTC)
    with running_receiver() as receiver:
        poster, message_id = HookPoster([SECRET]), "msg_p5jXN8AQM9LWM0D4loKWxJek"
        poster.post(receiver.url, '{"test": 2432232314}', receiver="r1", message_id=message_id, now=then)
    (message,) = receiver.messages
    assert message.headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert message.headers["webhook-timestamp"] == "1614265330"


def test_each_secret_signs_while_they_roll(receiver: Receiver) -> None:
    """Receivers that know only the old secret, and those that know only the new one, both verify."""
    post(receiver, secrets=(SECRET, OLD_SECRET))
    (message,) = receiver.messages
    assert message.headers["webhook-signature"].count("v1,") == 2
    assert message.verified(SECRET) == message.verified(OLD_SECRET)


def test_a_message_signed_long_ago_is_not_taken(receiver: Receiver) -> None:
    """Which is why each attempt is signed anew, under the same id."""
    post(receiver, now=datetime.now(UTC) - timedelta(hours=6))
    with pytest.raises(WebhookVerificationError, match="too old"):
        receiver.messages[0].verified()


def failure(receiver: Receiver, answer: Any, **changes: Any) -> ServiceError:
    """What becomes of a message that is answered like this."""
    receiver.answers = [answer]
    with pytest.raises(ServiceError) as caught:
        post(receiver, **changes)
    assert KEY not in f"{caught.value} {caught.value!r}" and receiver.url not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_takes_it(receiver: Receiver, status: int) -> None:
    receiver.answers = [status]
    post(receiver)


@pytest.mark.parametrize("status", [300, 304, 400, 401, 403, 404, 409, 422, 429, 500, 502, 503])
def test_anything_else_is_tried_again(receiver: Receiver, status: int) -> None:
    """A 401 or a 404 is a receiver that is being mended, and not one that wants nothing."""
    found = failure(receiver, status)
    assert isinstance(found, ServiceUnavailable)
    assert (found.code, str(found)) == (f"http_{status}", f"hook r1: answered HTTP {status}")


def test_it_waits_as_long_as_it_is_asked_to(receiver: Receiver) -> None:
    found = failure(receiver, (503, {"Retry-After": "120"}))
    assert isinstance(found, ServiceUnavailable) and found.retry_after_seconds == 120


def test_410_ends_it(receiver: Receiver) -> None:
    found = failure(receiver, 410)
    assert isinstance(found, ServiceRefused) and found.code == "gone"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    """What it leads to was chosen by somebody else; the signed message goes nowhere but where the admin said."""
    with running_receiver() as elsewhere:
        found = failure(receiver, (status, {"Location": elsewhere.url}))
        assert elsewhere.messages == []
    assert found.code == f"http_{status}"


def test_one_that_hangs_costs_no_more_than_its_time(receiver: Receiver) -> None:
    found = failure(receiver, "hang", total_seconds=0.3)
    assert isinstance(found, ServiceUnavailable)
    assert (found.code, found.outcome_unknown) == ("timed_out", True)


def test_one_that_hangs_takes_one_thread_of_many(receiver: Receiver) -> None:
    """Until it answers again, the others of this worker are told at once that it does not."""
    with running_receiver() as well:
        poster = HookPoster([SECRET], 0.3)
        receiver.answers = ["hang"]
        given: dict[str, Any] = {"receiver": "r1", "message_id": "msg-1", "now": datetime.now(UTC)}
        codes = []
        for _ in range(3):
            with pytest.raises(ServiceUnavailable) as caught:
                poster.post(receiver.url, BODY, **given)
            codes.append(caught.value.code)
        poster.post(well.url, BODY, **given)
        assert (codes, len(receiver.messages), len(well.messages)) == (["timed_out", "silent", "silent"], 1, 1)


def test_a_silence_is_broken_by_one_caller() -> None:
    clock = [0.0]
    silences = Silences(30, lambda: clock[0])
    assert silences.may_call("a") and silences.may_call("a")
    silences.heard("a", anything=False)
    assert not silences.may_call("a") and silences.may_call("b")
    clock[0] = 30.0
    assert [silences.may_call("a") for _ in range(3)] == [True, False, False]
    silences.heard("a", anything=False)
    clock[0] = 59.0
    assert not silences.may_call("a")
    clock[0] = 60.0
    assert silences.may_call("a")
    # Any answer ends it, a refusal too.
    silences.heard("a", anything=True)
    assert silences.may_call("a") and silences.may_call("a")


def test_one_that_breaks_off_may_have_taken_it(receiver: Receiver) -> None:
    found = failure(receiver, "reset")
    assert isinstance(found, ServiceUnavailable) and found.outcome_unknown


@pytest.mark.parametrize(
    "url",
    [f"http://127.0.0.1:1/{KEY}", f"http://user:{KEY}@127.0.0.1:1/", f"http://no.such.host.invalid/{KEY}",
     f"https://127.0.0.1:1/{KEY}"],
)  # fmt: skip
def test_one_that_is_not_there_is_tried_again(receiver: Receiver, url: str) -> None:
    found = failure(receiver, 204, url=url)
    assert isinstance(found, ServiceUnavailable) and not found.outcome_unknown


def test_a_password_in_the_url_is_sent_as_one(receiver: Receiver) -> None:
    post(receiver, url=receiver.url.replace("://", "://shop:pass@"))
    assert receiver.messages[0].headers["authorization"] == "Basic c2hvcDpwYXNz"


def test_a_poster_shows_no_secret() -> None:
    assert SECRET not in repr(HookPoster([SECRET]))
