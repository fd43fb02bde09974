"""Owns the imitated Upsampler: its routes, its ledger, its server. Called by sandbox.py."""

from __future__ import annotations

import math
import secrets
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, jsonify, request, send_file

from smi_workflow.sandbox.background import Crew
from smi_workflow.sandbox.clock import SandboxClock
from smi_workflow.sandbox.control import control_routes, plain_errors
from smi_workflow.sandbox.faults import Channel, FaultBook
from smi_workflow.sandbox.postman import Postman
from smi_workflow.sandbox.server import LoopbackServer, RequestLog, url_of
from smi_workflow.sandbox.upsampler_work import Refusal, Status, Submission, Workshop

IMAGE_TYPES = ("realism", "anime", "universal")
FACTOR_MAX = 16
JUDGE_SECONDS_MAX = 12.0
EARLY_SECONDS_MAX = 60.0
RESULT_SECONDS = 3 * 3600.0


class UpsamplerServer:
    """An Upsampler on loopback; `api_base` is what SMI_UPSAMPLER_API_BASE wants."""

    def __init__(
        self,
        listener: socket.socket,
        log: RequestLog,
        folder: Path,
        *,
        api_keys: tuple[str, ...] = (),
        credits: float = 100_000.0,
        work_seconds: float = 0.3,
        output_pixels_max: int = 64_000_000,
        retry_first_seconds: float = 0.5,
        retry_give_up_seconds: float = 300.0,
        seed: int | None = None,
    ) -> None:
        self.url = url_of(listener)
        self.api_base = f"{self.url}/api/v1"
        self.clock = SandboxClock()
        self.faults = FaultBook(None if seed is None else f"upsampler:{seed}")
        # Two crews: a slow shop that is called back must not keep the workers from upscaling.
        self._workers = Crew("upsampler-work")
        self._callbacks = Crew("upsampler-callbacks")
        postman = Postman(
            self._callbacks, first_wait_seconds=retry_first_seconds, give_up_seconds=retry_give_up_seconds
        )
        self.workshop = Workshop(
            folder,
            self._workers,
            postman,
            self.faults,
            self.clock,
            base_url=self.url,
            credits=credits,
            work_seconds=work_seconds,
            output_pixels_max=output_pixels_max,
            result_seconds=RESULT_SECONDS,
        )
        app = Flask(__name__)
        app.register_blueprint(_api_routes(self.workshop, self.faults, self.clock, api_keys))
        app.register_blueprint(_result_routes(self.workshop, self.clock))
        app.register_blueprint(control_routes(self.faults, self.ledger, self.clock))
        plain_errors(app, log)
        self._server = LoopbackServer("upsampler", listener, app, self.faults, log)

    def start(self) -> None:
        """Answer requests and work."""
        self._workers.start()
        self._callbacks.start()
        self._server.start()

    def stop(self) -> None:
        """Stop at once; unfinished work is dropped."""
        self._server.stop()
        self._callbacks.stop()
        self._workers.stop()

    def ledger(self) -> dict[str, Any]:
        """Every submission with its fetches and callbacks, and the credits left."""
        with self.workshop.lock:
            rows = [self._row(submission) for submission in self.workshop.submissions.values()]
            return {"submissions": rows, "credits": self.workshop.credits}

    def _row(self, submission: Submission) -> dict[str, Any]:
        return {
            **self.workshop.answer(submission),
            "source_url": submission.image_url,
            "webhook": submission.webhook,
            "factor": submission.factor,
            "image_type": submission.image_type,
            "extra_inputs": submission.extra_inputs,
            "created_at": submission.created_at,
            "source_size": submission.source_size,
            "output_size": submission.output_size,
            "refused": submission.refusal.error if submission.refusal else None,
            "fetches": list(submission.fetches),
            "deliveries": list(submission.letter.attempts) if submission.letter else [],
        }


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.error)


def _api_routes(
    workshop: Workshop, faults: FaultBook, clock: SandboxClock, api_keys: tuple[str, ...]
) -> Blueprint:
    routes = Blueprint("upsampler_api", __name__, url_prefix="/api/v1")

    @routes.before_request
    def authenticate() -> None:
        sent = request.authorization
        key = (sent.token if sent is not None and sent.type == "bearer" else None) or ""
        if not key or (api_keys and key not in api_keys):
            raise _Refused(Refusal(401, "Invalid API key"))

    @routes.post("/precise-upscale")
    def submit() -> Response:
        submission = _read_submission(clock())
        fault = faults.take(Channel.RESULT, ("fail_at_submit",))
        if fault is not None:
            submission.status, submission.error = (
                Status.FAILED,
                fault.text or "Upscaling is not available right now",
            )
            with workshop.lock:
                workshop.submissions[submission.id] = submission
                return jsonify(workshop.answer(submission))
        submission.early = faults.take(Channel.WEBHOOK, ("early",), webhook="upsampler.success")
        workshop.begin(submission)
        submission.judged.wait(JUDGE_SECONDS_MAX)
        if submission.refusal is not None:
            raise _Refused(submission.refusal)
        if submission.early is not None:
            submission.called_back.wait(EARLY_SECONDS_MAX)
        with workshop.lock:
            # The answer is that of the moment of taking on, however late it goes out.
            answer = workshop.answer(submission)
            return jsonify({"id": answer["id"], "status": Status.IN_QUEUE, "creditCost": answer["creditCost"]})

    @routes.get("/status/<submission_id>")
    def status(submission_id: str) -> Response:
        with workshop.lock:
            submission = workshop.submissions.get(submission_id)
            if submission is None or submission.refusal is not None:
                raise _Refused(Refusal(404, "Not found"))
            return jsonify(workshop.answer(submission))

    @routes.errorhandler(_Refused)
    def refuse(error: _Refused) -> tuple[Response, int]:
        return jsonify({"error": error.refusal.error}), error.refusal.http_status

    return routes


def _result_routes(workshop: Workshop, clock: SandboxClock) -> Blueprint:
    routes = Blueprint("upsampler_results", __name__, url_prefix="/results")

    @routes.get("/<name>")
    def result(name: str) -> Response | tuple[Response, int]:
        with workshop.lock:
            stored = workshop.results.get(name)
        if stored is None:
            return jsonify({"error": "Not found"}), 404
        if clock() >= stored.expires_at:
            return jsonify({"error": "This link has expired"}), 403
        return send_file(stored.path, mimetype="image/png", max_age=0)

    return routes


def _read_submission(now: float) -> Submission:
    data = request.get_json(silent=True)
    given = data.get("input") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(given, dict):
        raise _Refused(Refusal(400, "Body must be a JSON object with an input"))
    webhook = data.get("webhook")
    if webhook is not None and not _is_url(webhook):
        raise _Refused(Refusal(400, "webhook must be a URL"))
    if not _is_url(given.get("imageUrl")):
        raise _Refused(Refusal(400, "imageUrl must be a URL"))
    if given.get("inputImageType") not in IMAGE_TYPES:
        raise _Refused(Refusal(400, f"inputImageType must be one of {', '.join(IMAGE_TYPES)}"))
    factor = given.get("upscaleFactor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor):
        raise _Refused(Refusal(400, "upscaleFactor must be a number"))
    if not 1 < factor <= FACTOR_MAX:
        raise _Refused(Refusal(422, f"upscaleFactor must be above 1 and not exceed {FACTOR_MAX}"))
    rest = {
        name: value for name, value in given.items() if name not in ("imageUrl", "inputImageType", "upscaleFactor")
    }
    return Submission(
        id=secrets.token_hex(12),
        image_url=given["imageUrl"],
        webhook=webhook,
        image_type=given["inputImageType"],
        factor=factor,
        extra_inputs=rest,
        created_at=now,
    )


def _is_url(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
