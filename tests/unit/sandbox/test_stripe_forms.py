"""Owns the checks of Stripe's form encoding. Called by pytest."""

from __future__ import annotations

import pytest

from smi_workflow.sandbox.stripe_errors import StripeFailure
from smi_workflow.sandbox.stripe_forms import (
    FLAG,
    METADATA,
    RANGE,
    TEXTS,
    WHOLE,
    Field,
    Kind,
    check,
    group,
    read_form,
)
from smi_workflow.sandbox.stripe_params import SESSION_CREATE

FIELDS = {
    "amount": WHOLE,
    "created": RANGE,
    "expand": TEXTS,
    "flag": FLAG,
    "lines": Field(Kind.LIST, item=group(name=Field(required=True))),
    "metadata": METADATA,
}


def test_nested_keys_become_typed_parameters() -> None:
    pairs = [
        ("amount", "384"),
        ("created[gte]", "5"),
        ("expand[]", "a"),
        ("expand[]", "b"),
        ("flag", "false"),
        ("lines[1][name]", "second"),
        ("lines[0][name]", "first"),
        ("metadata[1]", "x"),
        ("metadata[job]", ""),
    ]
    assert check(FIELDS, read_form(pairs)) == {
        "amount": 384,
        "created": {"gte": 5},
        "expand": ["a", "b"],
        "flag": False,
        "lines": [{"name": "first"}, {"name": "second"}],
        "metadata": {"1": "x", "job": ""},
    }


@pytest.mark.parametrize(
    ("pair", "code", "param"),
    [
        (("colour", "red"), "parameter_unknown", "colour"),
        (("lines[0][colour]", "red"), "parameter_unknown", "lines[0][colour]"),
        (("amount", "3.84"), "parameter_invalid_integer", "amount"),
        (("amount", ""), "parameter_invalid_empty", "amount"),
        (("amount[x]", "1"), None, "amount"),
        (("flag", "yes"), None, "flag"),
        (("lines[a][name]", "x"), None, "lines"),
        (("metadata", "x"), None, "metadata"),
        (("metadata[a]", "x" * 501), None, "metadata[a]"),
        ((f"metadata[{'a' * 41}]", "x"), None, "metadata"),
        (("a[b", "x"), None, "a[b"),
    ],
)
def test_what_stripe_would_refuse_is_refused(pair: tuple[str, str], code: str | None, param: str) -> None:
    with pytest.raises(StripeFailure) as caught:
        check(FIELDS, read_form([pair]))
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
    assert not caught.value.began


def test_a_missing_parameter_is_named_with_its_path() -> None:
    with pytest.raises(StripeFailure) as caught:
        check(FIELDS, {"lines": {"0": {}}})
    assert (caught.value.code, caught.value.param) == ("parameter_missing", "lines[0][name]")


def test_a_key_that_is_both_value_and_object_is_refused() -> None:
    for pairs in ([("a", "1"), ("a[b]", "2")], [("a[b]", "2"), ("a", "1")]):
        with pytest.raises(StripeFailure):
            read_form(pairs)


def test_payment_method_types_is_gone_from_session_create() -> None:
    assert "payment_method_types" not in SESSION_CREATE
    assert "allowed_payment_method_types" in SESSION_CREATE
