"""The independent checker of chaos runs: silent about a good run, and it finds each planted fault, by its rule."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import checker, evidence
from tests.chaos.checker import RULES, judge
from tests.chaos.evidence import Evidence, Opened, Promise
from tests.unit.chaos.cases import (
    DELIVERED,
    GOOD,
    LEFT,
    OVER,
    RED,
    REFUNDED,
    SIZE,
    act,
    blameless,
    charge,
    dispute,
    life,
    link,
    mail,
    refund,
    submission,
)

Plant = Callable[[Evidence], object]


def no_delivery(run: Evidence) -> None:
    run.mails.clear()
    run.openings.clear()


def refund_withheld(run: Evidence) -> None:
    run.stripe["refunds"].clear()


def refund_lost_at_the_bank(run: Evidence) -> None:
    run.stripe["refunds"][0]["status"] = "failed"


def refund_too_small(run: Evidence) -> None:
    run.stripe["refunds"][0]["amount"] = 49


def link_never_worked(run: Evidence) -> None:
    run.openings[link(DELIVERED)] = [OVER]


def paid_twice(run: Evidence) -> None:
    run.stripe["charges"].append(charge(DELIVERED, 2))
    act(run, DELIVERED, "payment_unexpected", "stripe", payment_intent_id=f"pi_{DELIVERED}_2")


def payment_not_in_history(run: Evidence) -> None:
    run.stripe["charges"].append(charge(DELIVERED, 2))
    run.stripe["refunds"].append(refund(DELIVERED, "r2", number=2))


def strange_order(run: Evidence) -> None:
    run.stripe["charges"].append(charge("stranger"))


def same_refund_again(run: Evidence) -> None:
    run.stripe["refunds"] = [refund(REFUNDED, "r1", 20), refund(REFUNDED, "r1", 30)]


def refunds_beyond_the_charge(run: Evidence) -> None:
    run.stripe["refunds"].append(refund(REFUNDED, "r2", 1))


def refund_and_chargeback(run: Evidence) -> None:
    run.stripe["disputes"].append(dispute(REFUNDED, -50))


def delivered_unpaid(run: Evidence) -> None:
    run.mails.append(mail(LEFT))
    run.openings[link(LEFT)] = [GOOD]
    run.upsampler.append(submission(LEFT))


def delivered_after_refund(run: Evidence) -> None:
    run.stripe["refunds"].append(refund(DELIVERED, "r3"))


def submitted_unpaid(run: Evidence) -> None:
    run.upsampler.append(submission(LEFT))


def never_upscaled(run: Evidence) -> None:
    run.upsampler[0]["status"] = "FAILED"


def open_as(*openings: Opened) -> Plant:
    def plant(run: Evidence) -> None:
        run.openings[link(DELIVERED)] = list(openings)

    return plant


def second_link_dead(run: Evidence) -> None:
    run.mails.append(mail(DELIVERED, 2))
    run.openings[link(DELIVERED, 2)] = [Opened(404)]
    act(run, DELIVERED, "renew_download")


def first_link_replaced_by_nobody(run: Evidence) -> None:
    run.mails.append(mail(DELIVERED, 2))
    run.openings |= {link(DELIVERED): [GOOD, Opened(404)], link(DELIVERED, 2): [GOOD]}


def link_not_opened(run: Evidence) -> None:
    run.mails.append(mail(DELIVERED, 2))


def to_another_buyer(run: Evidence) -> None:
    run.mails.append(mail(DELIVERED, to=f"{REFUNDED}@example.com"))


def completed_in_silence(run: Evidence) -> None:
    run.mails[0] = replace(run.mails[0], subject="Your download link ends soon")


def row_missing(run: Evidence) -> None:
    del run.history[2]


def row_doubled(run: Evidence) -> None:
    run.history.append(run.history[2])


def jump(run: Evidence) -> None:
    run.history[3] = replace(run.history[3], from_state="abandoned")


def stuck(run: Evidence) -> None:
    run.history = [row for row in run.history if (row.subject_id, row.trigger) != (LEFT, "abandon")]


def refund_stuck(run: Evidence) -> None:
    run.history += [replace(life("r1", "request", workflow="refund")[0], to_state="submitted")]


def order_lost(run: Evidence) -> None:
    run.promises["lost"] = Promise("lost@example.com", SIZE, RED)


PLANTED: list[tuple[str, Plant]] = [
    ("charged, neither delivered nor refunded", no_delivery),
    ("charged, neither delivered nor refunded", refund_withheld),
    ("charged, neither delivered nor refunded", refund_lost_at_the_bank),
    ("charged, neither delivered nor refunded", refund_too_small),
    ("charged, neither delivered nor refunded", link_never_worked),
    ("charged twice", paid_twice),
    ("charged for nothing known", payment_not_in_history),
    ("charged for nothing known", strange_order),
    ("refunded twice", same_refund_again),
    ("refunded more than captured", refunds_beyond_the_charge),
    ("refunded more than captured", refund_and_chargeback),
    ("delivered without payment", delivered_unpaid),
    ("delivered and refunded", delivered_after_refund),
    ("submitted without payment", submitted_unpaid),
    ("delivered without upscale", never_upscaled),
    ("link does not work", open_as(Opened(404))),
    ("link does not work", open_as(Opened(500))),
    ("link does not work", open_as(Opened(425))),
    ("link does not work", open_as(OVER)),
    ("link does not work", open_as(Opened(200))),
    ("link does not work", open_as(Opened(200, (48, 32), RED))),
    ("link does not work", open_as(Opened(200, SIZE, (0, 255, 0)))),
    ("link does not work", second_link_dead),
    ("link does not work", first_link_replaced_by_nobody),
    ("link does not work", link_not_opened),
    ("mail to a stranger", to_another_buyer),
    ("link mail missing", completed_in_silence),
    ("history has gaps", row_missing),
    ("history has gaps", row_doubled),
    ("history has gaps", jump),
    ("never ended", stuck),
    ("never ended", refund_stuck),
    ("order lost", order_lost),
]


def test_a_blameless_run_has_no_findings() -> None:
    assert judge(blameless()) == []


@pytest.mark.parametrize(("rule", "plant"), PLANTED, ids=lambda item: getattr(item, "__name__", str(item)))
def test_a_planted_fault_is_found_by_its_rule(rule: str, plant: Plant) -> None:
    run = blameless()
    plant(run)
    found = judge(run)
    assert rule in {finding.rule for finding in found}
    assert all(finding.job_id and finding.text for finding in found)


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, _ in PLANTED} == set(RULES)


def refunded_by_an_admin(run: Evidence) -> None:
    delivered_after_refund(run)
    act(run, DELIVERED, "refund")


def charged_back(run: Evidence) -> None:
    run.stripe["disputes"].append(dispute(DELIVERED, -50))


def dispute_won(run: Evidence) -> None:
    run.stripe["disputes"].append(dispute(DELIVERED, -50, 50))


def refunded_in_part(run: Evidence) -> None:
    run.stripe["refunds"].append(refund(DELIVERED, "r4", 20))


def second_payment_sent_back(run: Evidence) -> None:
    paid_twice(run)
    run.stripe["refunds"].append(refund(DELIVERED, "r5", number=2))


def link_renewed(run: Evidence) -> None:
    run.mails.append(mail(DELIVERED, 2))
    run.openings |= {link(DELIVERED): [GOOD, Opened(404)], link(DELIVERED, 2): [GOOD]}
    act(run, DELIVERED, "renew_download")


def submitted_twice_by_a_crash(run: Evidence) -> None:
    run.upsampler.append(submission(DELIVERED, "FAILED"))


def mailed_twice(run: Evidence) -> None:
    run.mails.append(mail(DELIVERED))


@pytest.mark.parametrize(
    "happen",
    [
        refunded_by_an_admin,
        charged_back,
        dispute_won,
        refunded_in_part,
        second_payment_sent_back,
        link_renewed,
        submitted_twice_by_a_crash,
        mailed_twice,
    ],
)
def test_what_may_happen_is_no_finding(happen: Plant) -> None:
    run = blameless()
    happen(run)
    assert judge(run) == []


@pytest.mark.parametrize("module", [checker, evidence])
def test_it_imports_nothing_of_the_product(module: object) -> None:
    path = Path(str(getattr(module, "__file__", "")))
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert {name for name in imported if name.startswith(("smi_workflow", "workers", "tests"))} <= {
        "tests.chaos.evidence"
    }
