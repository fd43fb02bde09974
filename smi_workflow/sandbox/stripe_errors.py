"""Owns how Stripe says no. Called by the sandbox's Stripe."""

from __future__ import annotations

from typing import Any

from smi_workflow.errors import SmiError


class StripeFailure(SmiError):
    """An error answer in Stripe's shape.

    `began` is true when the endpoint had started to work: only then does an idempotency key keep the answer.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        began: bool = True,
    ) -> None:
        self.message = message
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.began = began
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        error: dict[str, Any] = {"message": self.message, "type": self.kind}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{self.code.replace('_', '-')}"
        if self.param is not None:
            error["param"] = self.param
        return {"error": error}


def invalid(
    message: str, param: str | None = None, code: str | None = None, *, began: bool = False
) -> StripeFailure:
    """A refusal of parameters, before any work unless `began`."""
    return StripeFailure(message, code=code, param=param, began=began)


def missing_object(noun: str, object_id: str, param: str, *, other_mode: str | None = None) -> StripeFailure:
    """No such object in this mode."""
    message = f"No such {noun}: '{object_id}'"
    if other_mode:
        message += f"; a similar object exists in {other_mode} mode, but this key is for the other mode."
    return StripeFailure(message, status=404, code="resource_missing", param=param)
