"""Owns Upsampler's work: fetch, resize for real, keep the PNG, call back. Called by upsampler.py."""

from __future__ import annotations

import io
import json
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from smi_workflow.sandbox.background import Crew
from smi_workflow.sandbox.faults import Channel, Fault, FaultBook
from smi_workflow.sandbox.postman import Letter, Postman

PIXELS_PER_CREDIT = 4_000_000
SOURCE_BYTES_MAX = 64 * 1024 * 1024
FETCH_TIMEOUT_SECONDS = 10.0
NOT_AN_IMAGE = b"<html><body><h1>503 Service Unavailable</h1></body></html>"
BROKEN_SOURCE = "The image could not be read"


class Status(StrEnum):
    """The API's words."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


@dataclass(slots=True)
class Refusal:
    """Why a submission is not taken on at all."""

    http_status: int
    error: str


@dataclass(slots=True)
class Submission:
    """One upscale, from submit to callback."""

    id: str
    image_url: str
    webhook: str | None
    image_type: str
    factor: float
    extra_inputs: dict[str, Any]
    created_at: float
    status: Status = Status.IN_QUEUE
    source: bytes = b""
    source_size: tuple[int, int] | None = None
    output_size: tuple[int, int] | None = None
    credit_cost: int | None = None
    error: str | None = None
    result_name: str | None = None
    refusal: Refusal | None = None
    fetches: list[dict[str, Any]] = field(default_factory=list)
    letter: Letter | None = None
    early: Fault | None = None
    judged: threading.Event = field(default_factory=threading.Event)
    called_back: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class StoredResult:
    """A file that the result URL leads to, for a while."""

    path: Path
    expires_at: float


class Workshop:
    """The workers and their credit balance; one lock around what the routes read."""

    def __init__(
        self,
        folder: Path,
        crew: Crew,
        postman: Postman,
        faults: FaultBook,
        clock: Callable[[], float],
        *,
        base_url: str,
        credits: float,
        work_seconds: float,
        output_pixels_max: int,
        result_seconds: float,
    ) -> None:
        self.lock = threading.Lock()
        self.credits = credits
        self.submissions: dict[str, Submission] = {}
        self.results: dict[str, StoredResult] = {}
        self._folder = folder
        self._crew = crew
        self._postman = postman
        self._faults = faults
        self._clock = clock
        self._base_url = base_url
        self._work_seconds = work_seconds
        self._output_pixels_max = output_pixels_max
        self._result_seconds = result_seconds
        self._http = threading.local()

    def begin(self, submission: Submission) -> None:
        """Fetch and judge in a worker; `judged` is set once it is known whether the submission is taken on."""
        with self.lock:
            self.submissions[submission.id] = submission
        self._crew.after(0, lambda: self._judge(submission))

    def answer(self, submission: Submission) -> dict[str, Any]:
        """A submission as the API shows it; call it with the lock held."""
        shown: dict[str, Any] = {
            "id": submission.id,
            "status": submission.status.value,
            "imageUrl": None,
            "creditCost": submission.credit_cost,
            "error": submission.error,
        }
        if submission.result_name is not None:
            shown["imageUrl"] = f"{self._base_url}/results/{submission.result_name}"
        return shown

    def _judge(self, submission: Submission) -> None:
        problem = self._fetch(submission)
        with self.lock:
            if problem is None:
                submission.refusal = self._refusal(submission)
            if submission.refusal is None and problem is None:
                assert submission.credit_cost is not None
                self.credits -= submission.credit_cost
        submission.judged.set()
        if problem is not None:
            self._crew.after(self._work_seconds, lambda: self._fail(submission, problem))
        elif submission.refusal is None:
            self._crew.after(self._work_seconds / 2, lambda: self._progress(submission))

    def _fetch(self, submission: Submission) -> str | None:
        record: dict[str, Any] = {"at": self._clock(), "url": submission.image_url}
        submission.fetches.append(record)
        try:
            with self._session().get(submission.image_url, timeout=FETCH_TIMEOUT_SECONDS, stream=True) as answer:
                record["status"] = answer.status_code
                if answer.status_code != 200:
                    return f"The image could not be fetched: HTTP {answer.status_code}"
                data = _read(answer)
        except (requests.RequestException, OSError) as error:
            record["error"] = type(error).__name__
            return f"The image could not be fetched: {type(error).__name__}"
        record["bytes"] = len(data)
        if len(data) > SOURCE_BYTES_MAX:
            return "The image file is too large"
        try:
            with Image.open(io.BytesIO(data)) as image:
                size = image.size
        except Exception:  # noqa: BLE001 - Pillow raises a dozen kinds for a broken file; all of them mean just that
            return BROKEN_SOURCE
        submission.source, submission.source_size = data, size
        width, height = (max(1, round(side * submission.factor)) for side in size)
        submission.output_size = (width, height)
        submission.credit_cost = max(1, -(-width * height // PIXELS_PER_CREDIT))
        return None

    def _refusal(self, submission: Submission) -> Refusal | None:
        assert submission.output_size is not None and submission.credit_cost is not None
        width, height = submission.output_size
        if width * height > self._output_pixels_max:
            return Refusal(422, f"Output of {width}x{height} would exceed {self._output_pixels_max} pixels")
        if submission.credit_cost > self.credits:
            return Refusal(402, "Insufficient credit balance")
        return None

    def _progress(self, submission: Submission) -> None:
        with self.lock:
            submission.status = Status.IN_PROGRESS
        fault = self._faults.take(
            Channel.RESULT, ("wrong_dimensions", "not_an_image", "fail", "never", "truncated")
        )
        if fault is not None and fault.kind == "never":
            return
        if fault is not None and fault.kind == "fail":
            text = fault.text or "Upscaling failed: internal error"
            self._crew.after(self._work_seconds / 2, lambda: self._fail(submission, text))
            return
        self._crew.after(self._work_seconds / 2, lambda: self._produce(submission, fault))

    def _produce(self, submission: Submission, fault: Fault | None) -> None:
        assert submission.output_size is not None
        width, height = submission.output_size
        if fault is not None and fault.kind == "wrong_dimensions":
            width, height = max(1, width // 2), max(1, height // 2)
        try:
            data = upscale(submission.source, width, height)
        except Exception:  # noqa: BLE001 - as above: a damaged file shows only while it is decoded
            self._fail(submission, BROKEN_SOURCE)
            return
        if fault is not None and fault.kind == "not_an_image":
            data = NOT_AN_IMAGE
        if fault is not None and fault.kind == "truncated":
            data = data[: len(data) // 2]
        name = f"{secrets.token_urlsafe(24)}.png"
        path = self._folder / name
        path.write_bytes(data)
        with self.lock:
            self.results[name] = StoredResult(path, self._clock() + self._result_seconds)
            submission.source = b""
            submission.result_name = name
            submission.status = Status.SUCCESS
        self._call_back(submission)

    def _fail(self, submission: Submission, error: str) -> None:
        with self.lock:
            if submission.credit_cost is not None:
                self.credits += submission.credit_cost
                submission.credit_cost = 0
            submission.source = b""
            submission.status = Status.FAILED
            submission.error = error
        self._call_back(submission)

    def _call_back(self, submission: Submission) -> None:
        if submission.webhook is not None:
            with self.lock:
                body = json.dumps(self.answer(submission)).encode()
            submission.letter = Letter(submission.webhook, lambda: (body, {"Content-Type": "application/json"}))
            fault = submission.early or self._faults.take(
                Channel.WEBHOOK, ("lost", "duplicate", "delay"), webhook=f"upsampler.{submission.status.lower()}"
            )
            self._postman.send(submission.letter, fault)
        submission.called_back.set()

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._http, "session", None)
        if session is None:
            session = self._http.session = requests.Session()
            session.trust_env = False
        return session


def _read(answer: requests.Response) -> bytes:
    data = bytearray()
    for chunk in answer.iter_content(64 * 1024):
        data += chunk
        if len(data) > SOURCE_BYTES_MAX:
            break
    return bytes(data)


def upscale(source: bytes, width: int, height: int) -> bytes:
    """The image at another size, as a PNG.

    Raises:
        Exception: Pillow's own, of many kinds, when the source is damaged.
    """
    with Image.open(io.BytesIO(source)) as opened:
        image: Image.Image = opened
        if image.mode not in ("RGB", "RGBA", "L", "LA"):
            transparent = image.mode == "P" and "transparency" in image.info
            image = image.convert("RGBA" if transparent else "RGB")
        resized = image.resize((width, height), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    # The fastest compression: a 64-megapixel PNG would otherwise take most of the time.
    resized.save(target, "PNG", compress_level=1)
    return target.getvalue()
