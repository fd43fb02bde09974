"""Owns the check of what is refused in a body before anything is done with it. Called by pytest."""

from __future__ import annotations

from typing import Any

import pytest

from smi_workflow.errors import InvalidInput
from smi_workflow.web.bodies import check_storable, parse_json


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b"{'a': 1}", b'{"a": 1} x', b"NaN", b'{"a": Infinity}', b"-Infinity",
        b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{}".decode().encode("utf-16"), b'"\xed\xa0\x80"', b"[" * 200_000,
        b'{"a":' * 200_000, b"1" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_json(body)
    assert refusal.value.field == "body"


@pytest.mark.parametrize(
    ("body", "content"),
    [(b"null", None), (b" [1] ", [1]), ('{"ä": "😀"}'.encode(), {"ä": "😀"}), (rb'"\ud83d\ude00"', "😀")],
)
def test_what_is_json(body: bytes, content: object) -> None:
    assert parse_json(body) == content


@pytest.mark.parametrize(
    "body",
    [
        rb'"\u0000"', rb'{"a": ["b", {"c": "x\u0000y"}]}', rb'{"\u0000": 1}', rb'"\ud800"', rb'"\udfffx"',
        rb'{"\udc00": 1}', rb'{"a": 9223372036854775808}', rb"[-9223372036854775809]",
        rb"1e999", rb'[{"a": -1e400}]',
    ],
)  # fmt: skip
def test_what_no_database_keeps(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        check_storable(parse_json(body))


def test_what_every_database_keeps() -> None:
    check_storable(
        parse_json(rb'{"a": [9223372036854775807, 1.5, true, null, "\ud83d\ude00\n\\u0000", "\\ud800"]}')
    )


def test_depth_is_no_trouble_for_the_check() -> None:
    nested: Any = "end"
    for _ in range(100_000):
        nested = [nested]
    check_storable(nested)
    # Taken apart step by step: freeing it at once would recurse as well.
    while isinstance(nested, list):
        nested = nested.pop()
