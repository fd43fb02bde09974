"""Prices: the seeds' example, rounding, limits, and what must hold for any size. Called by pytest."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smi_workflow.errors import InvalidInput
from smi_workflow.jobs.pricing import (
    AMOUNT_CENTS_MAX,
    MINIMUM_CENTS,
    STEP,
    THREE_DECIMAL,
    ZERO_DECIMAL,
    Price,
    from_cents,
    minimum_cents,
    quote,
    to_cents,
)

MAX = 64_000_000
CHEAP = Decimal("0.001")


def price(width: int = 2000, height: int = 2000, resolution: str = "4x", **changes: Any) -> Price:
    """A quote at the default settings."""
    fields = {"markup_percentage": Decimal(500), "currency": "usd", "output_pixels_max": MAX, **changes}
    return quote(width, height, resolution, **fields)


def test_the_seeds_example() -> None:
    made = price()
    assert (made.output_width, made.output_height) == (8000, 8000)
    assert (made.credits, made.cost) == (Decimal(16), Decimal("0.64"))
    assert (made.price, made.amount_cents, made.currency) == (Decimal("3.84"), 384, "usd")


@pytest.mark.parametrize(
    ("size", "credits"),
    [
        ((1, 1), 1),
        ((500, 500), 1),  # exactly 4 megapixels
        ((500, 501), 2),  # a row more is a credit more
        ((1000, 1000), 4),
        ((1000, 1001), 5),
    ],
)
def test_credits_are_whole_and_rounded_up(size: tuple[int, int], credits: int) -> None:
    assert price(*size).credits == credits


def test_a_pixel_more_than_can_be_made_is_refused_before_anyone_pays() -> None:
    assert price(2000, 2000).output_width * price(2000, 2000).output_height == MAX
    with pytest.raises(InvalidInput, match=r"resolution: 4x of 2000x2001 makes 64\.0 megapixels; at most 64\.0"):
        price(2000, 2001)
    with pytest.raises(InvalidInput, match="8x of 2000x2000 makes 256"):
        price(2000, 2000, "8x")
    assert price(1000, 1000, "8x").amount_cents == 384


@pytest.mark.parametrize("side", [0, -1, -(10**30), 100_001, 10**30])
@pytest.mark.parametrize("name", ["image_width", "image_height"])
def test_an_impossible_side_is_refused_by_name(name: str, side: int) -> None:
    sizes = {"image_width": 10, "image_height": 10, name: side}
    with pytest.raises(InvalidInput) as refused:
        price(sizes["image_width"], sizes["image_height"])
    assert refused.value.field == name


@pytest.mark.parametrize("side", [True, 10.5, "10", None, float("nan")])
def test_a_side_that_is_no_whole_number_is_refused_by_name(side: Any) -> None:
    with pytest.raises(InvalidInput, match="image_width: must be a whole number"):
        price(side, 10)


@pytest.mark.parametrize("resolution", ["", "2x", "16x", "4X", "4x ", "4"])
def test_an_unknown_resolution_is_refused(resolution: str) -> None:
    with pytest.raises(InvalidInput, match="resolution: must be 4x or 8x"):
        price(resolution=resolution)


@pytest.mark.parametrize(("currency", "cents"), [("usd", 50), ("gbp", 30), ("sek", 300), ("xyz", 50), ("jpy", 50)])
def test_no_price_is_below_what_stripe_charges_at_least(currency: str, cents: int) -> None:
    made = price(10, 10, currency=currency)
    assert made.amount_cents == cents
    assert made.price == from_cents(cents, currency)


@pytest.mark.parametrize("currency", sorted({*MINIMUM_CENTS, *ZERO_DECIMAL, *THREE_DECIMAL, *STEP, "xyz"}))
def test_the_least_price_is_an_amount_that_stripe_takes(currency: str) -> None:
    """50 of a currency whose amounts go by the hundred is refused at the checkout, with every small image."""
    least = price(1, 1, currency=currency, credit_cost=CHEAP).amount_cents
    assert least == minimum_cents(currency) >= MINIMUM_CENTS.get(currency, 50)
    assert least % STEP.get(currency, 1) == 0


@pytest.mark.parametrize(
    ("currency", "minimum", "cents"),
    [("usd", "0.30", 50), ("usd", "1.99", 199), ("krw", "700", 700), ("kwd", "0.151", 160), ("isk", "70.5", 7100)],
)
def test_a_shop_may_set_a_least_price_of_its_own(currency: str, minimum: str, cents: int) -> None:
    """In currencies for which Stripe publishes none, it has to; never less than Stripe takes."""
    assert price(1, 1, currency=currency, price_minimum=Decimal(minimum), credit_cost=CHEAP).amount_cents == cents


def test_the_cost_of_a_credit_is_in_the_shops_currency() -> None:
    """A yen shop that reckons in dollars sells 64 megapixels for 4 yen."""
    made = price(currency="jpy", credit_cost=Decimal(6))
    assert (made.credits, made.cost, made.amount_cents, made.price) == (
        Decimal(16), Decimal(96), 576, Decimal("576.00"),
    )  # fmt: skip
    # The price is made of the cost as it is, and the column keeps two decimals of it.
    made = price(10, 10, credit_cost=Decimal("0.0349"), markup_percentage=Decimal(10_000))
    assert (made.cost, made.amount_cents) == (Decimal("0.03"), 352)


def test_more_than_stripe_takes_at_once_is_refused_before_anyone_pays() -> None:
    made = price(credit_cost=Decimal(10_000), markup_percentage=Decimal(500))
    assert made.amount_cents == 96_000_000 < AMOUNT_CENTS_MAX
    with pytest.raises(InvalidInput, match="resolution: 4x of 2000x2000 costs more than Stripe takes at once"):
        price(credit_cost=Decimal(10_000), markup_percentage=Decimal(600))


def test_zero_decimal_currencies_have_no_hundredths() -> None:
    made = price(currency="jpy", markup_percentage=Decimal(100_000))
    assert (made.amount_cents, made.price) == (641, Decimal("641.00"))  # 0.64 at 1001 times


@pytest.mark.parametrize(
    ("amount", "currency", "cents"),
    [
        ("3.84", "kwd", 3840),
        ("3.846", "kwd", 3850),  # Stripe wants the last of the three digits to be 0
        ("3.84", "isk", 400),  # written with two decimals, which must be 00
        ("3.4", "ugx", 300),
        ("3.84", "eur", 384),
        ("0.005", "eur", 1),
        ("0.0049", "eur", 0),
        ("2.5", "jpy", 3),
    ],
)
def test_minor_units_are_stripes(amount: str, currency: str, cents: int) -> None:
    assert to_cents(Decimal(amount), currency) == cents


@pytest.mark.parametrize("currency", ["usd", "jpy", "kwd", "isk"])
def test_minor_units_there_and_back(currency: str) -> None:
    for cents in (0, 100, 1000, 99_999_900):
        assert to_cents(from_cents(cents, currency), currency) == cents


def test_a_markup_of_nothing_sells_at_cost() -> None:
    assert price(markup_percentage=Decimal(0)).amount_cents == 64


sizes = st.tuples(st.integers(1, 2000), st.integers(1, 2000))
markups = st.decimals(0, 100_000, places=2)
currencies = st.sampled_from(["usd", "jpy", "sek", "kwd", "isk", "xyz"])
SCALE = {"jpy": 1, "kwd": 1000}


@given(sizes, markups, currencies)
def test_a_price_is_exact_and_covers_its_cost(size: tuple[int, int], markup: Decimal, currency: str) -> None:
    made = price(*size, markup_percentage=markup, currency=currency)
    assert all(type(value) is Decimal for value in (made.credits, made.cost, made.price))
    assert type(made.amount_cents) is int
    assert made.credits * 4_000_000 >= made.output_width * made.output_height > (made.credits - 1) * 4_000_000 - 1
    assert made.amount_cents >= MINIMUM_CENTS.get(currency, 50)
    assert made.amount_cents % STEP.get(currency, 1) == 0
    assert made.price == from_cents(made.amount_cents, currency)
    # Rounding takes no more than half a step from what was wished for.
    wished = made.cost * (1 + markup / 100) * SCALE.get(currency, 100)
    assert made.amount_cents + Decimal(STEP.get(currency, 1)) / 2 >= wished


@given(sizes, sizes, markups)
def test_more_pixels_never_cost_less(one: tuple[int, int], other: tuple[int, int], markup: Decimal) -> None:
    small, large = sorted((one, other), key=lambda size: size[0] * size[1])
    cheap, dear = (price(*size, markup_percentage=markup) for size in (small, large))
    assert cheap.credits <= dear.credits
    assert cheap.amount_cents <= dear.amount_cents


@given(sizes, markups, markups)
def test_a_higher_markup_never_costs_less(size: tuple[int, int], one: Decimal, other: Decimal) -> None:
    low, high = sorted((one, other))
    assert price(*size, markup_percentage=low).amount_cents <= price(*size, markup_percentage=high).amount_cents
