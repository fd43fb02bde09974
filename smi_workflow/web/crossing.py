"""Owns which other sites' pages may call the public API: CORS, by exact origin. Called by site.py."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Flask, Response, request

PREFIX, EXCEPT = "/api/v1/", "/api/v1/admin"
METHODS = "GET, POST"
HEADERS_IN = "Content-Type, Idempotency-Key, X-Request-Id"
HEADERS_OUT = "Retry-After, X-Request-Id"
PREFLIGHT_SECONDS = 600


def allow_crossing(site: Flask, origins: Sequence[str]) -> None:
    """Tell browsers that pages of these origins may read the public API's answers, refusals included.

    No cookie and no token goes along: whoever answers to an origin gives it nothing that anyone else could not ask
    for. Admins' routes answer to none.
    """
    allowed = frozenset(origins)
    if not allowed:
        return

    @site.after_request
    def tell(response: Response) -> Response:
        if not request.path.startswith(PREFIX) or request.path.startswith(EXCEPT):
            return response
        # One answer to all would be kept by caches for the wrong one.
        response.vary.add("Origin")
        origin = request.headers.get("Origin", "")
        if origin in allowed:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = HEADERS_OUT
            if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                response.headers["Access-Control-Allow-Methods"] = METHODS
                response.headers["Access-Control-Allow-Headers"] = HEADERS_IN
                response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
        return response
