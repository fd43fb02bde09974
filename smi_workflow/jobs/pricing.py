"""Owns prices: credits, cost, mark-up, minor units, limits. Decimal throughout.

Called by manager.py and the web.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal

from smi_workflow.errors import InvalidInput
from smi_workflow.jobs.model import Resolution

CREDITS_PER_MEGAPIXEL = Decimal("0.25")
# Upsampler's price, in dollars; what it is in another currency is a setting.
COST_PER_CREDIT = Decimal("0.04")
CREDITS_MIN = Decimal(1)
SIDE_PX_MAX = 100_000

# Source: Stripe documentation, zero- and three-decimal currencies, special cases, minimum charge amounts.
ZERO_DECIMAL = frozenset(
    {"bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"}
)
THREE_DECIMAL = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
# What an amount in minor units must be divisible by, where that is not 1.
STEP = {**dict.fromkeys(THREE_DECIMAL, 10), "isk": 100, "ugx": 100}
MINIMUM_CENTS = {
    "usd": 50, "eur": 50, "gbp": 30, "cad": 50, "aud": 50, "chf": 50, "nzd": 50, "sgd": 50, "brl": 50,
    "sek": 300, "nok": 300, "dkk": 250, "jpy": 50, "hkd": 400, "mxn": 1000, "pln": 200, "czk": 1500,
    "aed": 200, "huf": 17500, "myr": 200, "ron": 200, "thb": 1000, "bgn": 100, "inr": 50,
}  # fmt: skip
# Elsewhere Stripe wants what is worth its minimum in the currency of the account: a setting says how much that is.
MINIMUM_CENTS_ELSEWHERE = 50
# Eight digits are the most that Stripe takes.
AMOUNT_CENTS_MAX = 99_999_999
HUNDREDTH = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Price:
    """What one sale costs us and the buyer."""

    resolution: Resolution
    output_width: int
    output_height: int
    credits: Decimal
    cost: Decimal
    price: Decimal
    amount_cents: int
    currency: str


def quote(
    width: int,
    height: int,
    resolution: str,
    *,
    markup_percentage: Decimal,
    currency: str,
    output_pixels_max: int,
    credit_cost: Decimal = COST_PER_CREDIT,
    price_minimum: Decimal = Decimal(0),
) -> Price:
    """The price of one image at one resolution.

    Args:
        width, height: of the original, in pixels.
        output_pixels_max: larger results are refused, before anyone pays.
        credit_cost: of one credit, in this currency.
        price_minimum: no sale costs less, nor less than Stripe takes.
    Raises:
        InvalidInput: an impossible size, an unknown resolution, a result too large to be made, or a price that is.
    """
    for name, side in (("image_width", width), ("image_height", height)):
        if isinstance(side, bool) or not isinstance(side, int):
            raise InvalidInput(name, f"must be a whole number of pixels, not {side!r}")
        if not 1 <= side <= SIDE_PX_MAX:
            raise InvalidInput(name, f"must be 1 to {SIDE_PX_MAX} pixels, not {side}")
    try:
        chosen = Resolution(resolution)
    except ValueError:
        options = " or ".join(Resolution)
        raise InvalidInput("resolution", f"must be {options}, not {resolution!r}") from None
    output_width, output_height = width * chosen.factor, height * chosen.factor
    pixels = output_width * output_height
    if pixels > output_pixels_max:
        raise InvalidInput(
            "resolution",
            f"{chosen} of {width}x{height} makes {pixels / 1e6:.1f} megapixels;"
            f" at most {output_pixels_max / 1e6:.1f} can be made",
        )
    needed = Decimal(pixels) * CREDITS_PER_MEGAPIXEL / Decimal(1_000_000)
    # Upsampler charges whole credits, and at least one.
    credits = max(CREDITS_MIN, needed.to_integral_value(rounding=ROUND_CEILING))
    cost = credits * credit_cost
    wished = to_cents(cost * (1 + markup_percentage / 100), currency)
    amount_cents = max(wished, minimum_cents(currency, price_minimum))
    if amount_cents > AMOUNT_CENTS_MAX:
        raise InvalidInput("resolution", f"{chosen} of {width}x{height} costs more than Stripe takes at once")
    return Price(
        chosen,
        output_width,
        output_height,
        credits,
        cost.quantize(HUNDREDTH, rounding=ROUND_HALF_UP),
        from_cents(amount_cents, currency),
        amount_cents,
        currency,
    )


def minimum_cents(currency: str, price_minimum: Decimal = Decimal(0)) -> int:
    """The least that a sale costs, in minor units that Stripe takes."""
    step, scale = STEP.get(currency, 1), _scale(currency)
    wished = max(Decimal(MINIMUM_CENTS.get(currency, MINIMUM_CENTS_ELSEWHERE)), price_minimum * scale)
    return int((wished / step).to_integral_value(rounding=ROUND_CEILING)) * step


def to_cents(amount: Decimal, currency: str) -> int:
    """An amount in minor units that Stripe takes, rounded half up."""
    step = STEP.get(currency, 1)
    return int((amount * _scale(currency) / step).to_integral_value(rounding=ROUND_HALF_UP)) * step


def from_cents(cents: int, currency: str) -> Decimal:
    """Minor units as an amount with two places, as the seeds' columns keep it."""
    return (Decimal(cents) / _scale(currency)).quantize(Decimal("0.01"))


def _scale(currency: str) -> int:
    if currency in ZERO_DECIMAL:
        return 1
    return 1000 if currency in THREE_DECIMAL else 100
