"""Owns the OpenAPI document, written from the routes and the models, and the page that shows it. By site.py.

pydantic writes the schemas: its dialect is that of OpenAPI 3.1.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from flask import Blueprint, Flask, Response, jsonify
from markupsafe import Markup, escape
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from smi_workflow.web.models import EXAMPLE_JOB, HookMessage, ProblemTold
from smi_workflow.web.operations import ATTRIBUTE, Operation
from smi_workflow.web.pages import render_template_page
from smi_workflow.web.problems import DETAILS, MEDIA_TYPE, phrase_of

ADMIN = "admin_api"
REFERENCE = "#/components/schemas/{model}"
BASIS = """\
Sell upscaled images: ask for the price, order, send the buyer to `checkout_url`, and ask how far the job is.
The download link goes to the buyer by e-mail.

Every refusal is `application/problem+json` (RFC 9457), and each answer names its request in `X-Request-Id`.
Amounts are texts in the currency's own unit. Unknown fields are refused. The public routes are limited per
address: a 429 or a 503 says in `Retry-After` when to come again.
"""
PARAMETERS = {
    "job_id": ("The job's id, as the order's answer gave it.", EXAMPLE_JOB, r"^[A-Za-z0-9_-]{1,64}$"),
}
TAGS = {
    "Shop": "For the shop's front: no account is needed.",
    "Admins": "For those who run the shop: `Authorization: Bearer` with a token of SMI_ADMIN_TOKENS.",
    "Watching": "For whoever watches the processes.",
    "Hooks": "What your own server is told, if SMI_HOOK_URLS names it.",
}


def openapi_routes(site: Flask) -> Blueprint:
    """The document, for programs and for people."""
    routes = Blueprint("openapi", __name__)

    @cache
    def built() -> dict[str, Any]:
        # Once, when first asked for: routes do not change, and writing it takes a while.
        return build(site)

    @routes.get("/openapi.json")
    def document() -> Response:
        return jsonify(built())

    @routes.get("/docs")
    def page() -> Response:
        made = built()

        def resolved(item: dict[str, Any]) -> dict[str, Any]:
            found: Any = made
            for part in item.get("$ref", "#").split("/")[1:]:
                found = found[part]
            return found if "$ref" in item else item

        return render_template_page(
            "docs.html", styles=("style", "docs"), document=made, resolved=resolved, kind=kind_of, prose=prose
        )

    return routes


def build(site: Flask) -> dict[str, Any]:
    """The document for every described route of this site."""
    found = sorted(_operations(site), key=lambda item: (item[0].startswith("/api/v1/admin"), item[0], item[1]))
    schemas, definitions = _schemas([operation for *_, operation, _ in found])
    paths: dict[str, Any] = {}
    used: set[int] = set()
    for path, method, endpoint, operation, text in found:
        paths.setdefault(path, {})[method] = _written(path, endpoint, operation, text, schemas)
        used |= set(operation.problems)
    return {
        "openapi": "3.1.0",
        "info": {"title": "smi_workflow", "version": "1", "description": BASIS, "license": {"name": "MIT"}},
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "webhooks": {"hook": {"post": _hook(schemas)}},
        "components": {
            "schemas": definitions,
            "responses": {str(status): _problem(status) for status in sorted(used)},
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operations(site: Flask) -> Iterator[tuple[str, str, str, Operation, str]]:
    for rule in site.url_map.iter_rules():
        view = site.view_functions[rule.endpoint]
        operation = getattr(view, ATTRIBUTE, None)
        if operation is not None:
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield path, method.lower(), rule.endpoint, operation, inspect.getdoc(view) or ""


def _schemas(operations: list[Operation]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Where each model's schema is, and all schemas by name."""
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        (ProblemTold, "serialization"), (HookMessage, "serialization"),
    ]  # fmt: skip
    for operation in operations:
        wanted += [(model, "validation") for model in (operation.body, operation.query) if model is not None]
        wanted += [(model, "serialization") for model in operation.answers.values()]
    places, whole = models_json_schema(list(dict.fromkeys(wanted)), ref_template=REFERENCE)
    return dict(places), whole["$defs"]


def _written(path: str, endpoint: str, operation: Operation, text: str, places: dict[Any, Any]) -> dict[str, Any]:
    parameters = [
        {
            "name": name, "in": "path", "required": True, "description": PARAMETERS[name][0],
            "example": PARAMETERS[name][1], "schema": {"type": "string", "pattern": PARAMETERS[name][2]},
        }
        for name in re.findall(r"{(\w+)}", path)
    ]  # fmt: skip
    if operation.query is not None:
        parameters += _query_parameters(operation.query)
    parameters += [
        {
            "name": header.name, "in": "header", "description": header.description,
            "schema": {"type": "string", "minLength": 1, "maxLength": header.max_length},
        }
        for header in operation.headers
    ]  # fmt: skip
    written: dict[str, Any] = {
        "operationId": endpoint.rpartition(".")[2], "tags": [operation.tag], "summary": operation.summary,
        "description": text, "parameters": parameters,
    }  # fmt: skip
    if operation.body is not None:
        schema = places[(operation.body, "validation")]
        content = {"schema": schema, "example": example_of(operation.body)}
        written["requestBody"] = {"required": True, "content": {"application/json": content}}
    written["responses"] = {
        **{
            str(status): {
                "description": inspect.getdoc(model) or "",
                "headers": {"X-Request-Id": _text_header("Names this request in our log.")},
                "content": {"application/json": {"schema": places[(model, "serialization")]}},
            }
            for status, model in operation.answers.items()
        },
        **{str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(operation.problems)},
    }
    if endpoint.startswith(f"{ADMIN}."):
        written["security"] = [{"admin": []}]
    return written


def _hook(places: dict[Any, Any]) -> dict[str, Any]:
    """What we send, where the others are what we take."""
    headers = {
        "webhook-id": "The same for the same message, however often it comes.",
        "webhook-timestamp": "When it was signed, in seconds since 1970.",
        "webhook-signature": "Over both and the body, with SMI_HOOK_SECRET; one for each secret while rolling.",
    }
    return {
        "operationId": "hook",
        "tags": ["Hooks"],
        "summary": "A moment of a sale",
        "description": "Sent to every URL in SMI_HOOK_URLS, as Standard Webhooks has it, until a 2xx takes it.",
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": text, "schema": {"type": "string"}}
            for name, text in headers.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": places[(HookMessage, "serialization")]}},
        },
        "responses": {
            "2XX": {"description": "Taken."},
            "410": {"description": "Nobody wants it any more: it is not sent again."},
            "default": {"description": "It is sent again later, for three days."},
        },
    }


def _query_parameters(model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    schema = model.model_json_schema(ref_template=REFERENCE)
    definitions = schema.get("$defs", {})
    for name, field in schema["properties"].items():
        # A parameter that is not there has no null in its place.
        choices = [choice for choice in field.get("anyOf", [field]) if choice.get("type") != "null"]
        schema_of_it = _inlined({**choices[0], "default": field.get("default")}, definitions)
        written = {"name": name, "in": "query", "description": field["description"], "schema": schema_of_it}
        if "examples" in field:
            written["example"] = field["examples"][0]
        yield written


def _inlined(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    left_out = ("description", "title", "examples", *(["default"] if schema.get("default") is None else []))
    plain = {key: value for key, value in schema.items() if key not in left_out}
    return {**plain, "items": _inlined(plain["items"], definitions)} if "items" in plain else plain


def prose(text: str) -> Markup:
    """Paragraphs with `names` in them, as a page shows them."""
    parts = (str(escape(" ".join(part.split()))) for part in text.split("\n\n"))
    written = "".join(f"<p>{part}</p>" for part in parts)
    marked = re.sub("`([^`]+)`", r"<code>\1</code>", written)
    # Escaped before the marks were set.
    return Markup(marked)  # nosec B704


def kind_of(schema: dict[str, Any]) -> str:
    """What a value is, in a few words for people."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema or "const" in schema:
        return " | ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(kind_of(choice) for choice in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {kind_of(schema['items'])}"
    return str(schema.get("format") or schema.get("type") or "any")


def example_of(model: type[BaseModel]) -> dict[str, Any]:
    """A body as its fields' examples make it; what is optional and has none is left out."""
    return {name: field.examples[0] for name, field in model.model_fields.items() if field.examples}


def _problem(status: int) -> dict[str, Any]:
    title = phrase_of(status)
    headers = {"X-Request-Id": _text_header("Names this request in our log.")}
    if status in (429, 503):
        headers["Retry-After"] = _text_header("Seconds until it is worth trying again.")
    if status == 401:
        headers["WWW-Authenticate"] = _text_header("Bearer.")
    example = {
        "type": "about:blank", "title": title, "status": status, "detail": DETAILS[status], "request_id": "req-1",
    }  # fmt: skip
    content = {"schema": {"$ref": REFERENCE.format(model="ProblemTold")}, "example": example}
    return {"description": DETAILS[status], "headers": headers, "content": {MEDIA_TYPE: content}}


def _text_header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}
