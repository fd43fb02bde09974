"""Owns the way of a request into a model, and of a model into an answer. Called by api.py and admin/api.py."""

from __future__ import annotations

from typing import TypeVar

from flask import Response, request
from pydantic import BaseModel, ValidationError

from smi_workflow.errors import InvalidInput
from smi_workflow.web.bodies import JSON_TYPE, check_storable, parse_json, read_body, require_json

BODY_BYTES_MAX = 64 * 1024

M = TypeVar("M", bound=BaseModel)


def read_json(model: type[M]) -> M:
    """The request's body as this model.

    Raises:
        Problem, InvalidInput: what is wrong with it, by field.
    """
    require_json()
    return _fit(model, parse_json(read_body(BODY_BYTES_MAX)))


def read_query(model: type[M]) -> M:
    """The request's query as this model; each parameter arrives as a list of texts.

    Raises:
        InvalidInput: names the parameter.
    """
    return _fit(model, request.args.to_dict(flat=False))


def told(answer: BaseModel, status: int = 200) -> Response:
    """This model as JSON."""
    return Response(answer.model_dump_json(), status, content_type=JSON_TYPE)


def _fit(model: type[M], content: object) -> M:
    check_storable(content)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidInput(field[:100], f"is refused: {first['msg']}") from None
