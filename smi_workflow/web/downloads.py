"""Owns the handing out of files: results to buyers, sources to Upsampler. Called by site.py.

Also a process of its own, because slow buyers hold threads: payments must not wait behind them. Its target is
`smi_workflow.web.downloads:create_app()`.
"""

from __future__ import annotations

import hashlib
import os
import re
from datetime import UTC, datetime
from typing import BinaryIO

from flask import Blueprint, Flask, Response, request
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.wsgi import FileWrapper, wrap_file

from smi_workflow.app import App
from smi_workflow.errors import InvalidInput, ServiceRefused
from smi_workflow.integrations.images import CONTENT_TYPES, EXTENSIONS
from smi_workflow.jobs.model import Job, JobStatus
from smi_workflow.jobs.tokens import TOKEN_PATTERN, is_signed_until, token_hash
from smi_workflow.web.health import health_routes
from smi_workflow.web.problems import Problem
from smi_workflow.web.serving import make_site, open_or_exit

CHUNK_BYTES = 64 * 1024
_TYPES = {f".{EXTENSIONS[name]}": CONTENT_TYPES[name] for name in EXTENSIONS}
# Anything else (several ranges, other units, nonsense) is answered with the whole file, as RFC 9110 allows.
_SINGLE_RANGE = re.compile(r"bytes=(\d{1,18}-\d{0,18}|-\d{1,18})", re.ASCII)
_OVER = (JobStatus.FAILED, JobStatus.ABANDONED)


def create_app(app: App | None = None) -> Flask:
    """The downloads process.

    Args:
        app: an open system; unset, one from the environment, or the process ends with what is wrong.
    """
    app = app or open_or_exit("downloads")
    site, _ = make_site(app)
    site.register_blueprint(health_routes(app))
    site.register_blueprint(download_routes(app))
    return site


def download_routes(app: App) -> Blueprint:
    """Links that open files, for whoever has them."""
    routes = Blueprint("downloads", __name__)
    jobs = app.job_tables.jobs

    @routes.get("/download/<token>")
    def download(token: str) -> Response:
        job = (
            jobs.get_or_none(jobs.download_token == token_hash(token)) if TOKEN_PATTERN.fullmatch(token) else None
        )
        if job is None:
            raise _unknown()
        # On its way, or in a state of another release, during a deploy.
        if job.status not in (JobStatus.COMPLETED, *_OVER):
            raise _too_early()
        is_over = job.download_expires_at is None or app.clock.now() >= job.download_expires_at
        if job.status in _OVER or is_over or not job.upscaled_file_path:
            raise _expired()
        file = _open(app, job.upscaled_file_path)
        if file is None:
            raise _expired()
        return _send(file, job.upscaled_file_path, _file_name(job), "private, no-store")

    @routes.get("/source/<job_id>/<signature>")
    def source(job_id: str, signature: str) -> Response:
        good = is_signed_until(app.settings.secret_keys, signature, app.clock.now(), "source", job_id)
        if good is None:
            raise Problem(404)
        if not good:
            raise Problem(410, "This link has expired.")
        job = jobs.get_or_none(jobs.job_id == job_id)
        if job is None or (file := _open(app, job.source_file)) is None:
            raise Problem(404)
        return _send(file, job.source_file, None, "no-store")

    return routes


def _unknown() -> Problem:
    detail = (
        "It may have been cut short, or a newer link has taken its place."
        " Please open the link in the latest e-mail that we sent you."
    )
    return Problem(404, detail, title="This link opens nothing")


def _expired() -> Problem:
    detail = "Downloads are kept for a limited time. If you still need your image, please write to the shop."
    return Problem(410, detail, title="This download is over")


def _too_early() -> Problem:
    detail = "Your image is still being made. The link in our e-mail works as soon as it is done."
    return Problem(425, detail, title="Almost there")


def _open(app: App, name: str) -> BinaryIO | None:
    try:
        return app.storage.open(name)
    except (InvalidInput, ServiceRefused):
        return None


def _file_name(job: Job) -> str:
    assert job.upscaled_file_path is not None
    ending = os.path.splitext(job.upscaled_file_path)[1]  # noqa: PTH122  # a stored name, not a path of this machine
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{job.job_id}-{job.resolution}{ending}")


def _send(file: BinaryIO, name: str, download_name: str | None, cache: str) -> Response:
    """Stream an open file, whole or one range of it, in constant memory; closes it."""
    facts = os.fstat(file.fileno())
    # RFC 9110: ranges are for GET alone.
    ranged = request.method == "GET" and _SINGLE_RANGE.fullmatch(request.headers.get("Range", "").strip())
    # The server's own wrapper may use sendfile, but cannot seek.
    body = FileWrapper(file, CHUNK_BYTES) if ranged else wrap_file(request.environ, file, CHUNK_BYTES)
    kind = _TYPES.get(os.path.splitext(name)[1], "application/octet-stream")  # noqa: PTH122
    response = Response(body, content_type=kind, direct_passthrough=True)
    response.content_length = facts.st_size
    response.last_modified = datetime.fromtimestamp(int(facts.st_mtime), UTC)
    # Names of stored files are used once, so name, size and time name the bytes.
    response.set_etag(hashlib.sha256(f"{name}:{facts.st_size}:{facts.st_mtime_ns}".encode()).hexdigest()[:32])
    response.headers["Cache-Control"] = cache
    if download_name is not None:
        response.headers.set("Content-Disposition", "attachment", filename=download_name)
    conditions = {key: value for key, value in request.environ.items() if key != "HTTP_RANGE"}
    if ranged:
        # Werkzeug refuses a suffix longer than the file; RFC 9110 has it mean the whole file.
        is_long = ranged[1].startswith("-") and int(ranged[1][1:]) > facts.st_size
        conditions["HTTP_RANGE"] = "bytes=0-" if is_long else ranged[0]
    try:
        response.make_conditional(conditions, accept_ranges=True, complete_length=facts.st_size)
    except RequestedRangeNotSatisfiable:
        file.close()
        raise
    if request.method == "HEAD" or response.status_code == 304:
        file.close()
        response.response = ()
    return response
