"""Owns what the OpenAPI document says of a route, written beside it. Called by the routes and openapi.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

V = TypeVar("V", bound=Callable[..., object])

ATTRIBUTE = "operation"


@dataclass(frozen=True, slots=True)
class Header:
    """A header that a request may carry."""

    name: str
    description: str
    max_length: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One route and method. Its description is the docstring of the function that answers.

    Attributes:
        answers: by status.
        problems: the statuses of its refusals, all problem+json.
    """

    tag: str
    summary: str
    answers: Mapping[int, type[BaseModel]]
    problems: Sequence[int] = ()
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    headers: Sequence[Header] = ()


def described(
    tag: str,
    summary: str,
    *,
    answers: Mapping[int, type[BaseModel]],
    problems: Sequence[int] = (),
    query: type[BaseModel] | None = None,
    body: type[BaseModel] | None = None,
    headers: Sequence[Header] = (),
) -> Callable[[V], V]:
    """Describe the function that answers a route; stands below the route's own decorator."""

    def attach(view: V) -> V:
        setattr(view, ATTRIBUTE, Operation(tag, summary, answers, problems, query, body, headers))
        return view

    return attach
