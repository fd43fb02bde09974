"""Owns what goes in and out of the public API: a model for every body and every answer. Called by its siblings.

The OpenAPI document is written from these: a field's description and example are what its reader sees.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from smi_workflow.jobs.model import JobStatus, Resolution
from smi_workflow.jobs.pricing import SIDE_PX_MAX

REFERENCE_MAX = 2**63 - 1
EXAMPLE_JOB = "3f0c6d2e-8a51-4b7e-9c1d-5f2a7b8e9d10"

# Any text is taken in and judged by the shop, in words of its own; the document says what it will agree to.
ResolutionText = Annotated[
    str, Field(max_length=10), WithJsonSchema({"type": "string", "enum": [str(one) for one in Resolution]})
]
Amount = Annotated[
    str, Field(pattern=r"^[0-9]+\.[0-9]{2}$", description="In the currency's own unit.", examples=["3.84"])
]
Currency = Annotated[str, Field(pattern="^[a-z]{3}$", description="As Stripe writes it.", examples=["usd"])]
# Text, because another release may have more of them, and both run side by side during a deploy.
Status = Annotated[
    str, Field(description=f"One of {', '.join(JobStatus)}; a newer release may add some.", examples=["pending"])
]
JobId = Annotated[str, Field(description="The job's id: whoever has it may ask how far the job is.")]


class Taken(BaseModel):
    """A body that is read strictly: no unknown field, no text for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Told(BaseModel):
    """An answer."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class Order(Taken):
    """What a buyer orders."""

    image_url: str = Field(
        min_length=1, max_length=4096, description="Where the image is: it is fetched, measured and kept at once.",
        examples=["https://shop.example/photo.jpg"],
    )  # fmt: skip
    resolution: ResolutionText = Field(description="How many times larger each side becomes.", examples=["4x"])
    image_width: int = Field(ge=1, le=SIDE_PX_MAX, description="Of the image, in pixels.", examples=[240])
    image_height: int = Field(ge=1, le=SIDE_PX_MAX, description="Of the image, in pixels.", examples=[160])
    post_id: int | None = Field(
        None, ge=1, le=REFERENCE_MAX, description="WordPress's post, or a number of your own; kept.", examples=[7]
    )
    attachment_id: int | None = Field(
        None, ge=1, le=REFERENCE_MAX, description="WordPress's attachment, or a number of your own.", examples=[8]
    )
    email: str | None = Field(
        None, max_length=254, examples=["jane@example.com"],
        description="Where the link goes; left out, Stripe asks the buyer for it.",
    )  # fmt: skip


class Size(Taken):
    """What a price depends on."""

    image_width: int = Field(ge=1, le=SIDE_PX_MAX, description="Of the image, in pixels.", examples=[2000])
    image_height: int = Field(ge=1, le=SIDE_PX_MAX, description="Of the image, in pixels.", examples=[2000])


class Quote(Told):
    """The price of one resolution."""

    resolution: Resolution = Field(description="How many times larger each side becomes.")
    output_width: int = Field(description="Of the result, in pixels.")
    output_height: int = Field(description="Of the result, in pixels.")
    amount: Amount
    currency: Currency


class NotSold(Told):
    """A resolution that this image cannot have."""

    resolution: Resolution = Field(description="How many times larger each side would become.")
    reason: str = Field(description="For people.")


class Quotes(Told):
    """Every resolution: its price, or why it is not sold for this size."""

    quotes: list[Quote]
    refused: list[NotSold]


class Ordered(Told):
    """An order that can be paid."""

    job_id: JobId = Field(examples=[EXAMPLE_JOB])
    status: Status
    checkout_url: str = Field(
        description="Send the buyer there to pay.", examples=["https://checkout.stripe.com/c/pay/cs_test_1"]
    )
    amount: Amount
    currency: Currency


class Progress(Told):
    """What a waiting buyer may see: nothing personal, and no link."""

    job_id: JobId = Field(examples=[EXAMPLE_JOB])
    status: Status
    progress: str = Field(description="How far it is, in a sentence.", examples=["Your image is being upscaled."])
    next: str = Field(description="What happens next, in a sentence.", examples=["A few minutes more, usually."])
    final: bool = Field(description="True: nothing more will happen by itself; no need to ask again.")
    amount: Amount
    currency: Currency
    created_at: datetime


class ProblemTold(BaseModel):
    """A refusal, as RFC 9457 has it."""

    model_config = ConfigDict(extra="allow", title="Problem")

    type: str = Field(description="about:blank: the status says what kind of problem it is.")
    title: str = Field(description="The status in words.", examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(description="What is wrong, for whoever sent the request.")
    request_id: str = Field(description="Names this request in our log.")
    # Left out where there is nothing to name.
    field: str = Field("", description="What is refused: a field, a parameter or a header.")
    code: str = Field("", description="A stable word for programs.")


class HookData(Told):
    """What happened to which job."""

    job_id: JobId = Field(examples=[EXAMPLE_JOB])
    sequence: int = Field(description="Counts the transitions of a job: a lower one than you know of is old news.")
    status: Status


class HookMessage(Told):
    """One moment of a sale, as a receiver of SMI_HOOK_URLS is told."""

    type: Literal["job_created", "payment_completed", "job_completed", "job_failed"]
    timestamp: datetime
    data: HookData


class Alive(Told):
    """The process runs."""

    status: str = Field(examples=["ok"])
