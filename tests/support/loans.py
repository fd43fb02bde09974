"""Owns a second, unrelated workflow: a library lends books.

Called by the engine's tests: it proves that the engine is generic. A loan is
reserved, lent, and returned or lost; a fine is another subject, started in the same commit.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from peewee import BigAutoField, BooleanField, CharField, IntegerField

from smi_workflow.engine.declaration import ANYWHERE, Case, Effect, Move, Parent, State
from smi_workflow.engine.tables import Subject
from smi_workflow.engine.workflow import Workflow


class Loan(Subject):
    id = BigAutoField()
    loan_id = CharField(64, unique=True)
    state = CharField(20)
    reader = CharField(50, default="")
    blocked = BooleanField(default=False)
    renewals = IntegerField(default=0)

    class Meta:
        table_name = "loans"


class Fine(Subject):
    id = BigAutoField()
    fine_id = CharField(64, unique=True)
    loan_id = CharField(64)
    state = CharField(20)
    cents = IntegerField()

    class Meta:
        table_name = "fines"


FETCH_BOOK = Effect("fetch_book", queue="desk", failure="cancel", attempts=3)
SEND_SLIP = Effect("send_slip", queue="post", harmless="the reader has the book", survives=True)
REMIND = Effect("remind", queue="post", failure="lose")
CALL_BACK = Effect("call_back", queue="post", failure="lose")
COLLECT = Effect("collect", queue="desk", failure="waive")


def reader_not_blocked(case: Case[Loan]) -> str | None:
    return "the reader is blocked" if case.row.blocked else None


def book_scanned(case: Case[Loan]) -> str | None:
    return None if case.facts["barcode"] == "ok" else "the barcode does not match"


def lend(case: Case[Loan]) -> None:
    case.record(shelf=case.facts.get("shelf"))


def count_renewal(case: Case[Loan]) -> None:
    case.set(renewals=case.row.renewals + 1)


def start_fine(case: Case[Loan]) -> None:
    case.unit.start(
        "fine", {"fine_id": f"f-{case.row.loan_id}", "loan_id": case.row.loan_id, "cents": 500}, actor=case.actor
    )


def settle_loan(case: Case[Fine]) -> None:
    case.unit.fire("loan", case.row.loan_id, "found", actor=case.actor)


def inputs(case: Case[Any]) -> dict[str, object]:
    return {"loan": case.row.loan_id, "renewals": case.row.renewals}


LOAN = Workflow(
    name="loan",
    model=Loan,
    key="loan_id",
    state_column="state",
    initial="reserved",
    states=(
        State(
            "reserved", "waits for the book", waiting=True,
            owes=(FETCH_BOOK.now(inputs), REMIND.later(lambda case: timedelta(days=2), deadline=True)),
        ),
        State("lent", "the reader has it", owes=(REMIND.later(lambda case: timedelta(days=28), deadline=True),),
              waiting=True),
        State("returned", "back on the shelf"),
        State("lost", "gone"),
    ),
    moves=(
        Move("lend", "reserved", "lent", guards=(reader_not_blocked, book_scanned), change=lend,
             owes=(SEND_SLIP.now(inputs), COLLECT.now(when=lambda case: False))),
        Move("renew", "lent", None, guards=(reader_not_blocked,), change=count_renewal, cancels=(REMIND,),
             owes=(CALL_BACK.later(lambda case: timedelta(days=7)),)),
        Move("give_back", "lent", "returned"),
        Move("cancel", "reserved", "returned"),
        Move("reserve_again", "reserved", "reserved"),
        Move("lose", ("reserved", "lent"), "lost", change=start_fine, hook="book_lost"),
        Move("waive", ANYWHERE, None),
        Move("found", "lost", "returned"),
    ),
)  # fmt: skip

FINE = Workflow(
    name="fine",
    model=Fine,
    key="fine_id",
    state_column="state",
    initial="open",
    states=(State("open", "to be paid"), State("paid", "done")),
    moves=(Move("pay", "open", "paid", change=settle_loan),),
    parent=Parent("loan", "loan_id"),
)
