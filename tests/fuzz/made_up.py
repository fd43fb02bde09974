"""Owns what strangers might send: JSON of any shape, nearly right events, odd texts and headers.

Called by tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

# Numbers, texts and shapes at the edges of what databases, clocks and columns hold.
EDGES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, 0.5, 1e308, -0.0,
    float("inf"), float("nan"), "", " ", "\0", "\ud800", "x" * 300, "0", "-1", "NaN", "null", "\u202e", "é" * 5,
    [], {}, [[]], {"": None}, {"id": None}, {"id": "x"},
)  # fmt: skip

texts = st.text(max_size=40) | st.sampled_from([value for value in EDGES if isinstance(value, str)])
scalars = st.sampled_from(EDGES) | st.integers() | st.floats() | texts
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(texts, json_values, max_size=6)
header_values = st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=60)


def maybe(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is expected, three times of four; anything else otherwise."""
    return st.one_of(good, good, good, json_values)


def objects(fields: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with any of these fields, each perhaps of another kind, and perhaps with more."""
    known = st.fixed_dictionaries({}, optional={name: maybe(value) for name, value in fields.items()})
    return st.builds(lambda first, more: {**more, **first}, known, st.just({}) | json_objects)


def ids(*known: str) -> st.SearchStrategy[str]:
    """An id that somebody has, or nobody."""
    return st.sampled_from([*known, "nobody"]) | texts


cents = st.sampled_from([384, 50, 0, -5, 100, 383, 10**12]) | st.integers()
currencies = st.sampled_from(["usd", "USD", "eur", "jpy", "", "usd "])
