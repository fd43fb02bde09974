"""Owns the checks of the fault book. Called by pytest."""

from __future__ import annotations

from typing import Any

import pytest

from smi_workflow.errors import InvalidInput
from smi_workflow.sandbox.faults import Channel, FaultBook

REFUNDS = {"method": "POST", "path": "/v1/refunds"}
RESET = {"kind": "reset"}


def take_post(book: FaultBook, path: str) -> str | None:
    fault = book.take(Channel.REQUEST, method="POST", path=path)
    return fault.kind if fault else None


def test_a_rule_strikes_as_often_as_told_and_then_is_gone() -> None:
    book = FaultBook()
    book.add(REFUNDS, RESET, times=2)
    assert [take_post(book, "/v1/refunds") for _ in range(3)] == ["reset", "reset", None]
    assert book.listing() == []


def test_a_rule_without_a_number_strikes_for_ever_until_cleared() -> None:
    book = FaultBook()
    book.add(REFUNDS, RESET, times=None)
    assert [take_post(book, "/v1/refunds") for _ in range(5)] == ["reset"] * 5
    assert book.listing()[0]["taken"] == 5
    book.clear()
    assert take_post(book, "/v1/refunds") is None


@pytest.mark.parametrize(
    ("pattern", "path", "hit"),
    [
        ("/v1/refunds", "/v1/refunds/re_1", True),
        ("/v1/refunds", "/v1/charges", False),
        ("/v1/*/expire", "/v1/checkout/sessions/cs_1/expire", True),
        ("/v1/*/expire", "/v1/checkout/sessions/cs_1", False),
    ],
)
def test_a_path_is_a_prefix_or_a_pattern(pattern: str, path: str, hit: bool) -> None:
    book = FaultBook()
    book.add({"path": pattern}, RESET)
    assert (take_post(book, path) is not None) is hit


def test_another_method_is_left_alone() -> None:
    book = FaultBook()
    book.add(REFUNDS, RESET)
    assert book.take(Channel.REQUEST, method="GET", path="/v1/refunds") is None


def test_only_the_kinds_that_are_asked_for_are_taken() -> None:
    book = FaultBook()
    book.add({"result": True}, {"kind": "fail"})
    assert book.take(Channel.RESULT, ("fail_at_submit",)) is None
    assert book.take(Channel.RESULT, ("fail",)) is not None


def test_chance_repeats_with_the_seed() -> None:
    def draws(seed: int) -> list[str | None]:
        book = FaultBook(seed)
        book.add(REFUNDS, RESET, times=None, probability=0.5)
        return [take_post(book, "/v1/refunds") for _ in range(40)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert {None, "reset"} == set(draws(7))


@pytest.mark.parametrize(
    ("match", "fault", "more"),
    [
        ({}, RESET, {}),
        ({"path": "/", "webhook": "*"}, RESET, {}),
        ({"colour": "red"}, RESET, {}),
        (REFUNDS, {}, {}),
        (REFUNDS, {"kind": "lost"}, {}),
        (REFUNDS, {"kind": "reset", "colour": "red"}, {}),
        (REFUNDS, {"kind": "status", "status": "503"}, {}),
        (REFUNDS, RESET, {"times": 0}),
        (REFUNDS, RESET, {"times": True}),
        (REFUNDS, RESET, {"probability": 1.5}),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(
    match: dict[str, Any], fault: dict[str, Any], more: dict[str, Any]
) -> None:
    book = FaultBook()
    with pytest.raises(InvalidInput):
        book.add(match, fault, **more)
    assert book.listing() == []


def test_a_plain_500_is_remembered_by_an_idempotency_key_and_a_503_is_not() -> None:
    book = FaultBook()
    book.add(REFUNDS, {"kind": "status", "status": 500})
    book.add(REFUNDS, {"kind": "status"})
    book.add(REFUNDS, {"kind": "status", "status": 500, "remember": False})
    taken = [book.take(Channel.REQUEST, method="POST", path="/v1/refunds") for _ in range(3)]
    assert [fault.remembered for fault in taken if fault] == [True, False, False]
