"""Owns the parameters that Stripe's endpoints know, by version 2026-10-28.endive. Called by stripe_routes.py.

`payment_method_types` is missing on purpose: session create lost it with 2026-09-30.endive.
"""

from __future__ import annotations

from collections.abc import Mapping

from smi_workflow.sandbox.stripe_forms import FLAG, METADATA, RANGE, TEXT, TEXTS, WHOLE, Field, Kind, group, one_of

Fields = Mapping[str, Field]

_PRICE_DATA = group(
    currency=Field(required=True, length_max=3),
    product=TEXT,
    product_data=group(
        name=Field(required=True),
        description=TEXT,
        images=TEXTS,
        metadata=METADATA,
        tax_code=TEXT,
        unit_label=TEXT,
    ),
    tax_behavior=one_of("exclusive", "inclusive", "unspecified"),
    unit_amount=WHOLE,
)
_LINE_ITEM = group(price=TEXT, price_data=_PRICE_DATA, quantity=WHOLE, metadata=METADATA)
_PAYMENT_INTENT_DATA = group(
    capture_method=one_of("automatic", "automatic_async", "manual"),
    description=TEXT,
    metadata=METADATA,
    receipt_email=TEXT,
    statement_descriptor=Field(length_max=22),
    statement_descriptor_suffix=Field(length_max=22),
    transfer_group=TEXT,
)
SESSION_CREATE: Fields = {
    "adaptive_pricing": group(enabled=FLAG),
    "allow_promotion_codes": FLAG,
    "allowed_payment_method_types": TEXTS,
    "automatic_tax": group(enabled=Field(Kind.FLAG, required=True)),
    "billing_address_collection": one_of("auto", "required"),
    "cancel_url": TEXT,
    "client_reference_id": Field(length_max=200),
    "currency": Field(length_max=3),
    "customer_creation": one_of("always", "if_required"),
    "customer_email": Field(length_max=800),
    "excluded_payment_method_types": TEXTS,
    "expand": TEXTS,
    "expires_at": WHOLE,
    "integration_identifier": Field(length_max=200),
    "line_items": Field(Kind.LIST, required=True, item=_LINE_ITEM),
    "locale": TEXT,
    "metadata": METADATA,
    "mode": one_of("payment", "setup", "subscription", required=True),
    "payment_intent_data": _PAYMENT_INTENT_DATA,
    "submit_type": one_of("auto", "book", "donate", "pay", "subscribe"),
    "success_url": Field(required=True),
    "ui_mode": one_of("hosted_page"),
}
REFUND_CREATE: Fields = {
    "amount": WHOLE,
    "charge": TEXT,
    "expand": TEXTS,
    "metadata": METADATA,
    "payment_intent": TEXT,
    "reason": one_of("duplicate", "fraudulent", "requested_by_customer"),
}
EXPAND_ONLY: Fields = {"expand": TEXTS}
METADATA_UPDATE: Fields = {"expand": TEXTS, "metadata": METADATA}

_PAGE: Fields = {"created": RANGE, "ending_before": TEXT, "expand": TEXTS, "limit": WHOLE, "starting_after": TEXT}
LISTS: Mapping[str, Fields] = {
    "sessions": {
        **_PAGE,
        "customer_details": group(email=Field(required=True)),
        "payment_intent": TEXT,
        "status": one_of("complete", "expired", "open"),
    },
    "intents": _PAGE,
    "charges": {**_PAGE, "payment_intent": TEXT},
    "refunds": {**_PAGE, "charge": TEXT, "payment_intent": TEXT},
    "disputes": {**_PAGE, "charge": TEXT, "payment_intent": TEXT},
    "events": {**_PAGE, "delivery_success": FLAG, "type": TEXT, "types": TEXTS},
}
