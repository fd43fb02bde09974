"""Owns Stripe's form encoding: nested keys in, checked and typed parameters out. Called by stripe_routes.py."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from smi_workflow.sandbox.stripe_errors import StripeFailure, invalid

METADATA_KEYS_MAX = 50
METADATA_KEY_LENGTH_MAX = 40
METADATA_VALUE_LENGTH_MAX = 500
_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_SEGMENT = re.compile(r"\[([^\[\]]*)\]")

Raw = dict[str, Any]


class Kind(StrEnum):
    """What a parameter holds."""

    TEXT = "text"
    WHOLE = "whole"
    FLAG = "flag"
    METADATA = "metadata"
    LIST = "list"
    GROUP = "group"
    RANGE = "range"


@dataclass(frozen=True, slots=True)
class Field:
    """One parameter that an endpoint knows."""

    kind: Kind = Kind.TEXT
    required: bool = False
    options: tuple[str, ...] = ()
    length_max: int = 5000
    fields: Mapping[str, Field] = field(default_factory=dict)
    item: Field | None = None


TEXT = Field()
WHOLE = Field(Kind.WHOLE)
FLAG = Field(Kind.FLAG)
METADATA = Field(Kind.METADATA)
RANGE = Field(Kind.RANGE)
TEXTS = Field(Kind.LIST, item=TEXT)


def one_of(*options: str, required: bool = False) -> Field:
    """A word out of a fixed list."""
    return Field(options=options, required=required)


def group(required: bool = False, **fields: Field) -> Field:
    """A nested object."""
    return Field(Kind.GROUP, fields=fields, required=required)


def read_form(pairs: Iterable[tuple[str, str]]) -> Raw:
    """Nest `a[b][0]=c` as Stripe does; lists are still objects with numbers for keys.

    Raises:
        StripeFailure: a key that cannot be read, or one used both as value and as object.
    """
    root: Raw = {}
    for key, value in pairs:
        found = _KEY.fullmatch(key)
        if found is None:
            raise invalid(f"Invalid parameter name: {key}", key)
        segments = [found[1], *_SEGMENT.findall(found[2])]
        node = root
        for segment in segments[:-1]:
            child = node.setdefault(segment, {})
            if not isinstance(child, dict):
                raise invalid(f"Invalid object: {key}", key)
            node = child
        last = segments[-1] or str(len(node))
        if isinstance(node.get(last), dict):
            raise invalid(f"Invalid string: {key}", key)
        node[last] = value
    return root


def check(fields: Mapping[str, Field], raw: Raw, prefix: str = "") -> dict[str, Any]:
    """Turn nested strings into typed parameters.

    Raises:
        StripeFailure: unknown, missing or malformed, in Stripe's words.
    """
    for name in raw:
        if name not in fields:
            path = _path(prefix, name)
            raise invalid(f"Received unknown parameter: {path}", path, "parameter_unknown")
    for name, known in fields.items():
        if known.required and name not in raw:
            path = _path(prefix, name)
            raise invalid(f"Missing required param: {path}.", path, "parameter_missing")
    return {name: _convert(fields[name], value, _path(prefix, name)) for name, value in raw.items()}


def _path(prefix: str, name: str) -> str:
    return f"{prefix}[{name}]" if prefix else name


def _convert(known: Field, value: Any, path: str) -> Any:
    if known.kind is Kind.METADATA:
        return _metadata(value, path)
    if known.kind is Kind.RANGE:
        return _range(value, path)
    if known.kind is Kind.GROUP:
        return check(known.fields, _object(value, path), path)
    if known.kind is Kind.LIST:
        assert known.item is not None
        members = _object(value, path)
        if not all(key.isdigit() for key in members):
            raise invalid(f"Invalid array: {path}", path)
        return [_convert(known.item, members[key], f"{path}[{key}]") for key in sorted(members, key=int)]
    return _scalar(known, value, path)


def _object(value: Any, path: str) -> Raw:
    if not isinstance(value, dict):
        raise invalid(f"Invalid object: {path}", path)
    return value


def _scalar(known: Field, value: Any, path: str) -> Any:
    if not isinstance(value, str):
        raise invalid(f"Invalid string: {path}", path)
    if value == "":
        message = (
            f"You passed an empty string for '{path}'. We assume empty values are an attempt to unset "
            f"a parameter; however '{path}' cannot be unset."
        )
        raise invalid(message, path, "parameter_invalid_empty")
    if known.kind is Kind.WHOLE:
        return _whole(value, path)
    if known.kind is Kind.FLAG:
        if value not in ("true", "false"):
            raise invalid(f"Invalid boolean: {value}", path)
        return value == "true"
    if known.options and value not in known.options:
        raise invalid(f"Invalid {path}: must be one of {', '.join(known.options)}", path)
    if len(value) > known.length_max:
        raise invalid(f"Invalid string: {path} must be at most {known.length_max} characters", path)
    return value


def _whole(value: str, path: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", value):
        raise invalid(f"Invalid integer: {value}", path, "parameter_invalid_integer")
    return int(value)


def _range(value: Any, path: str) -> dict[str, int]:
    if isinstance(value, str):
        moment = _whole(value, path)
        return {"gte": moment, "lte": moment}
    return check(dict.fromkeys(("gt", "gte", "lt", "lte"), WHOLE), _object(value, path), path)


def _metadata(value: Any, path: str) -> dict[str, str]:
    if value == "":
        return {}
    pairs = _object(value, path)
    if len(pairs) > METADATA_KEYS_MAX:
        raise invalid(f"You can have up to {METADATA_KEYS_MAX} keys in {path}.", path)
    for key, text in pairs.items():
        problem: StripeFailure | None = None
        if not isinstance(text, str):
            problem = invalid("Metadata values must be strings", f"{path}[{key}]")
        elif len(key) > METADATA_KEY_LENGTH_MAX:
            problem = invalid(f"Metadata keys can be at most {METADATA_KEY_LENGTH_MAX} characters long.", path)
        elif len(text) > METADATA_VALUE_LENGTH_MAX:
            problem = invalid(
                f"Metadata values can be up to {METADATA_VALUE_LENGTH_MAX} characters.", f"{path}[{key}]"
            )
        if problem is not None:
            raise problem
    return dict(pairs)
