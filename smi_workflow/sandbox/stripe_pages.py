"""Owns the page where a buyer of the sandbox pays, declines or leaves. Called by Stripe's server."""

from __future__ import annotations

from flask import Blueprint, Response, render_template, request

from smi_workflow.sandbox.stripe_book import StripeBook
from smi_workflow.sandbox.stripe_checkout import BUYER_DEFAULT, SessionClosed, decline, is_email, pay
from smi_workflow.sandbox.stripe_errors import StripeFailure
from smi_workflow.sandbox.stripe_objects import Payload, money_text

SESSION_PLACEHOLDER = "{CHECKOUT_SESSION_ID}"
DECLINED = "Your card was declined. You can try again with another one."
NO_EMAIL = "Please enter an e-mail address."


def pay_routes(book: StripeBook) -> Blueprint:
    """The buyer's side of a checkout session."""
    routes = Blueprint("stripe_pages", __name__, url_prefix="/pay")

    def page(session: Payload, message: str = "", status: int = 200) -> Response:
        text = render_template(
            "pay.html",
            session=session,
            title=book.extras[session["id"]].title,
            amount=money_text(session["amount_total"], session["currency"]),
            email=request.form.get("email") or session["customer_email"] or BUYER_DEFAULT,
            message=message,
        )
        return Response(
            text, status, headers={"Cache-Control": "no-store"}, content_type="text/html; charset=utf-8"
        )

    def look(session_id: str) -> Payload:
        with book.turn():
            return book.show(book.get("sessions", session_id, None))

    def seller(url: str, session_id: str) -> Response:
        return Response(status=303, headers={"Location": url.replace(SESSION_PLACEHOLDER, session_id)})

    @routes.get("/<session_id>")
    def show(session_id: str) -> Response:
        return page(look(session_id))

    @routes.post("/<session_id>/pay")
    def post_pay(session_id: str) -> Response:
        session = look(session_id)
        email = request.form.get("email", "").strip() or None
        if email is not None and not is_email(email):
            return page(session, NO_EMAIL, 400)
        delayed = request.values.get("method") == "delayed"
        try:
            with book.turn():
                pay(book, book.get("sessions", session_id, None), email=email, delayed=delayed)
        except SessionClosed as closed:
            if closed.session_status == "expired":
                return page(look(session_id), status=410)
        # A second click on a paid session lands where the first one did.
        return seller(session["success_url"], session_id)

    @routes.post("/<session_id>/decline")
    def post_decline(session_id: str) -> Response:
        try:
            with book.turn():
                decline(book, book.get("sessions", session_id, None), email=request.form.get("email") or None)
        except SessionClosed:
            return page(look(session_id), status=410)
        return page(look(session_id), DECLINED, 402)

    @routes.post("/<session_id>/leave")
    def post_leave(session_id: str) -> Response:
        session = look(session_id)
        if session["cancel_url"] is None:
            return page(session, "The shop has given no page to go back to.")
        return seller(session["cancel_url"], session_id)

    @routes.errorhandler(StripeFailure)
    def refuse(failure: StripeFailure) -> tuple[str, int]:
        return render_template("pay.html", session=None, message=failure.message), failure.status

    return routes
