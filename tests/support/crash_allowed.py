"""Owns what a crash may leave behind, as data: everything else must be as if nobody had died.

Called by tests/acceptance/test_crash_points.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from smi_workflow.engine.points import Point
from tests.support.crash_sales import ADMIN, BUYER, Case, Outcome


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may differ after an activity was cut off: at most one more, or one less, of each of these lines.

    With points: when it died there. Without: when the outcome of its call was unknown to us, that is, after the
    call went out and before what came of it was committed.
    """

    activity: str
    why: str
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    points: frozenset[Point] = frozenset()


def _mail(to: str, subject: str) -> tuple[str, ...]:
    # The same letter once more; another letter would show, for letters are counted by their Message-ID.
    return (f"mail to {to}: {subject}",)


_NO_KEYS = "SMTP knows no keys: what was accepted may be sent again, as the same letter with the same link"
_BEFORE_THE_ROW = frozenset(
    {Point.FILE_PLACED, Point.SOURCE_KEPT, Point.ROW_WRITTEN, Point.HISTORY_WRITTEN, Point.EFFECTS_OWED,
     Point.WORK_DONE}
)  # fmt: skip
_LEFT_OVER = "a half-written file stays in .incoming, where nobody looks; only space is lost"

ALLOWED = (
    Allowed("send_download_link", _NO_KEYS, more=_mail(BUYER, "Your upscaled image is ready")),
    Allowed("send_failure_notice", _NO_KEYS,
            more=_mail(BUYER, "We could not upscale your image: your money goes back")),
    Allowed("send_refund_notice", _NO_KEYS, more=_mail(BUYER, "We have returned $0.50")),
    Allowed("warn_expiry", _NO_KEYS, more=_mail(BUYER, "Your download link ends soon")),
    Allowed("tell_admin", _NO_KEYS, more=_mail(ADMIN, "[action needed] job fail")),
    Allowed("submit_upscale", "Upsampler knows no keys: unless a callback came meanwhile, it is asked again",
            more=("upsampler submission: SUCCESS, factor 4, size (240, 160)",)),
    Allowed("order", _LEFT_OVER, more=("file: unfinished",), points=frozenset({Point.FILE_WRITTEN})),
    Allowed("order", "the order is sent again, and keeps its image under another name; only space is lost",
            more=("file: of nobody",), points=_BEFORE_THE_ROW),
    Allowed("fetch_result", _LEFT_OVER, more=("file: unfinished",), points=frozenset({Point.FILE_WRITTEN})),
)  # fmt: skip

# Two are at work there; who is first is chance, and any death may turn it.
RACES = (
    Allowed("submit_refund", "Stripe's webhook may settle a refund before we do; then there is nothing left to do",
            more=("effect of refund: submit_refund skipped",), less=("effect of refund: submit_refund done",)),
    Allowed("warn_expiry", "the warning comes three quarters of a second before the end, and not after it",
            less=("mail to buyer@example.com: Your download link ends soon",
                  "letter to buyer@example.com: Your download link ends soon")),
)  # fmt: skip


def differences(case: Case, expected: Counter[str], outcome: Outcome) -> list[str]:
    """What is in the books and should not be, and the other way round, beyond what is allowed."""
    more, less = outcome.books - expected, expected - outcome.books
    for allowed in (*_that_apply(case, outcome.story), *RACES):
        more -= Counter(allowed.more)
        less -= Counter(allowed.less)
    return [f"{number} more: {line}" for line, number in sorted(more.items())] + [
        f"{number} less: {line}" for line, number in sorted(less.items())
    ]


def _that_apply(case: Case, story: str) -> Iterator[Allowed]:
    in_doubt = set(_in_doubt(case, story))
    for allowed in ALLOWED:
        if allowed.points:
            if allowed.activity == case.activity and case.point in allowed.points:
                yield allowed
        elif allowed.activity in in_doubt:
            yield allowed


def _in_doubt(case: Case, story: str) -> Iterator[str]:
    """The activities of the process that died whose call may have had its effect, with nobody to say so.

    The one that was cut off stood exactly at its point; the others, in other threads, somewhere after theirs.
    """
    lines = [line.split() for line in story.splitlines()]
    death = lines.index([case.role, case.activity, case.point, str(case.number)])
    points: dict[str, list[str]] = {}
    for role, activity, point, _ in lines[: death + 1]:
        if role == case.role:
            points.setdefault(activity, []).append(point)
    for activity, passed in points.items():
        out = Point.CALL_ANSWERED if activity == case.activity else Point.CALL_READY
        if out in passed and Point.COMMITTED not in passed[passed.index(out) :]:
            yield activity
