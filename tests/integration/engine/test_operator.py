"""Law 12: expected state, dry run, idempotency keys, history that is only ever added to, and what explain says."""

from __future__ import annotations

from typing import Any

import pytest

from smi_workflow.errors import (
    EngineError,
    GuardRefused,
    InvalidInput,
    StaleState,
    TransitionNotAllowed,
    UnknownSubject,
    UnknownTrigger,
)
from tests.support.engines import GOOD, Bench, taped, together


def test_history_keeps_who_what_when_and_why(bench: Bench) -> None:
    """Law 12: actor, reason, definition, metadata, one row for each transition."""
    bench.start()
    bench.clock.advance(seconds=5)
    bench.fire("lend", actor="admin:jane", reason="she asked", facts={"barcode": "ok", "shelf": "B4"})
    first, last = bench.engine.history("loan", "l1")
    assert (first.sequence, first.trigger, first.from_state, first.to_state) == (1, "create", "", "reserved")
    assert (last.sequence, last.actor, last.reason, last.metadata) == (
        2,
        "admin:jane",
        "she asked",
        '{"shelf":"B4"}',
    )
    assert last.fingerprint == bench.engine.workflows["loan"].fingerprint
    assert (last.created_at, last.caused_by, last.idempotency_key) == (bench.clock.now(), None, None)


def test_applied_says_what_history_says(bench: Bench) -> None:
    """Law 12: the answer is the history row, and what it owes."""
    bench.start()
    applied = bench.fire("lend", reason="scanned")
    row = bench.engine.history("loan", "l1")[-1]
    assert (applied.sequence, applied.from_state, applied.to_state, applied.reason, applied.at) == (
        row.sequence, row.from_state, row.to_state, row.reason, row.created_at,
    )  # fmt: skip
    owed = [(item.name, item.queue, item.is_timer) for item in applied.owed]
    assert owed == [("remind", "post", True), ("send_slip", "post", False)]
    assert applied.owed[1].id == bench.effect("send_slip").id
    assert not applied.replayed


@pytest.mark.parametrize("trigger", ["lend", "lose", "waive", "reserve_again"])
def test_a_dry_run_writes_nothing_at_all(bench: Bench, trigger: str) -> None:
    """Law 12: every table is as before, and the answer is what the real run then gives."""
    bench.start()
    bench.inbox(lambda event: 1 / 0).receive("post", "e1", "x", "{}")  # type: ignore[arg-type,return-value]
    bench.bells.rung.clear()
    before = bench.dump()
    with taped(bench.database) as tape:
        dry = bench.fire(trigger, reason="what if", dry_run=True)
    assert "COMMIT" not in tape
    assert tape[-1] == "ROLLBACK"
    assert bench.dump() == before
    assert bench.bells.rung == []
    real = bench.fire(trigger, reason="what if")
    assert [(item.name, item.due_at) for item in dry.owed] == [(item.name, item.due_at) for item in real.owed]
    assert (dry.sequence, dry.from_state, dry.to_state) == (real.sequence, real.from_state, real.to_state)


def test_a_dry_run_refuses_what_a_real_run_refuses(bench: Bench) -> None:
    """Law 12."""
    bench.start(blocked=True)
    with pytest.raises(GuardRefused):
        bench.fire("lend", dry_run=True)
    with pytest.raises(TransitionNotAllowed):
        bench.fire("give_back", dry_run=True)


def test_an_expected_state_is_compared_with_the_row_as_it_is(bench: Bench) -> None:
    """Law 12: two admins look at the same page."""
    bench.start()
    bench.fire("lend", expected_state="reserved")
    before = bench.dump()
    with pytest.raises(StaleState) as caught:
        bench.fire("lose", expected_state="reserved")
    assert (caught.value.expected, caught.value.state) == ("reserved", "lent")
    assert bench.dump() == before


def test_an_idempotency_key_applies_once(bench: Bench) -> None:
    """Law 12: the same key gives the first answer, whatever state the subject has moved to."""
    bench.start()
    first = bench.fire("lend", idempotency_key="k1", reason="first")
    before = bench.dump()
    bench.bells.rung.clear()
    again = bench.fire("lend", idempotency_key="k1", reason="second", expected_state="reserved")
    assert bench.dump() == before
    assert bench.bells.rung == []
    assert (again.sequence, again.to_state, again.reason, again.replayed) == (
        first.sequence,
        "lent",
        "first",
        True,
    )
    assert again.at == first.at
    assert not bench.fire("renew", idempotency_key="k2", facts={}).replayed


def test_an_idempotency_key_belongs_to_one_trigger_and_one_subject(bench: Bench) -> None:
    """Law 12: used for another trigger, it is a mistake of the caller."""
    bench.start()
    bench.start("l2")
    bench.fire("waive", idempotency_key="k1")
    with pytest.raises(InvalidInput) as caught:
        bench.fire("lend", idempotency_key="k1")
    assert caught.value.field == "idempotency_key"
    assert bench.fire("lend", "l2", idempotency_key="k1").sequence == 2


def test_one_key_at_the_same_time_applies_once(bench: Bench) -> None:
    """Law 12: a double click, on a trigger that could be applied any number of times."""
    bench.start()
    results = together(bench, *[lambda: bench.fire("waive", idempotency_key="k1")] * 3)
    assert sorted(applied.replayed for applied in results) == [False, True, True]
    assert {applied.sequence for applied in results} == {2}
    assert len(bench.history()) == 2


def test_a_refused_key_may_be_used_again(bench: Bench) -> None:
    """Law 12: a refusal is no transition."""
    bench.start()
    with pytest.raises(GuardRefused):
        bench.fire("lend", idempotency_key="k1", facts={"barcode": "bad"})
    assert not bench.fire("lend", idempotency_key="k1").replayed


def test_history_is_only_ever_added_to(bench: Bench) -> None:
    """Law 12: across a whole life no statement updates or deletes a row of it."""
    with taped(bench.database) as tape:
        bench.lent()
        bench.fire("renew", facts={})
        for name in ("fetch_book", "send_slip"):
            bench.performer().perform(bench.effect(name).id)
        inbox = bench.inbox(lambda event: pytest.fail("not handled here"))
        inbox.receive("post", "e1", "x", "{}")
        bench.fire("lose")
        bench.engine.fire("fine", "f-l1", "pay", actor="system")
    touching = {line.split()[0] for line in tape if "t_smi_transitions" in line}
    assert touching == {"INSERT"}
    sequences = [row.sequence for row in bench.engine.history("loan", "l1")]
    assert sequences == list(range(1, len(sequences) + 1))


def test_refusals_name_what_is_possible(bench: Bench) -> None:
    """Errors carry state, trigger and what is allowed."""
    bench.start()
    with pytest.raises(TransitionNotAllowed) as caught:
        bench.fire("give_back")
    assert not isinstance(caught.value, UnknownTrigger)
    assert (caught.value.workflow, caught.value.subject_id, caught.value.state) == ("loan", "l1", "reserved")
    assert caught.value.allowed == ("lend", "cancel", "reserve_again", "lose", "waive")
    with pytest.raises(UnknownTrigger):
        bench.fire("fly")
    with pytest.raises(UnknownSubject, match="there is no loan nobody"):
        bench.fire("lend", "nobody")
    with pytest.raises(UnknownSubject, match="there is no fine nothing"):
        bench.engine.fire("fine", "nothing", "pay", actor="system")
    with pytest.raises(UnknownSubject):
        bench.engine.read("loan", "nobody")
    with pytest.raises(EngineError, match="there is no workflow scroll; there are: loan, fine"):
        bench.engine.fire("scroll", "s1", "unroll", actor="system")


LONG: list[tuple[str, dict[str, Any]]] = [
    ("actor", {"actor": "admin:" + "x" * 95}),
    ("idempotency_key", {"idempotency_key": "k" * 101}),
    ("actor", {"actor": "admin:\x00"}),
    ("idempotency_key", {"idempotency_key": "k\udcff"}),
]


@pytest.mark.parametrize(("field", "given"), LONG, ids=["actor", "key", "actor's bytes", "key's bytes"])
def test_what_history_cannot_keep_is_bad_input(bench: Bench, field: str, given: dict[str, Any]) -> None:
    """Law 12: the same clear answer on every database, SQLite included, which would keep anything."""
    bench.start()
    before = bench.dump()
    with pytest.raises(InvalidInput) as caught:
        bench.fire("lend", **given)
    assert caught.value.field == field
    assert bench.dump() == before
    assert bench.fire("lend", actor="admin:" + "x" * 94, idempotency_key="k" * 100).to_state == "lent"


# -- explain ----------------------------------------------------------------------------------------------------


def test_explain_tells_what_may_happen_and_what_blocks_it(bench: Bench) -> None:
    """What an admin sees: every trigger of the state, each guard that refuses, each fact that is missing."""
    bench.start(blocked=True)
    before = bench.dump()
    options = {option.trigger: option for option in bench.engine.explain("loan", "l1")}
    assert list(options) == ["lend", "cancel", "reserve_again", "lose", "waive"]
    lend = options["lend"]
    assert (lend.to, lend.allowed) == ("lent", False)
    assert lend.blocked_by == (("reader_not_blocked", "the reader is blocked"),)
    assert lend.needs == ("barcode",)
    assert (options["waive"].to, options["waive"].allowed) == (None, True)
    assert bench.dump() == before


def test_explain_weighs_the_facts_it_is_given(bench: Bench) -> None:
    bench.start()
    for facts, allowed, needs in ((GOOD, True, ()), ({"barcode": "bad"}, False, ()), ({}, True, ("barcode",))):
        lend = bench.engine.explain("loan", "l1", facts)[0]
        assert (lend.allowed, lend.needs) == (allowed, needs)


def test_explain_and_fire_agree(bench: Bench) -> None:
    """No option that fire refuses, and no refusal that explain did not tell."""
    bench.start()
    for facts in (GOOD, {"barcode": "bad"}):
        for option in bench.engine.explain("loan", "l1", facts):
            try:
                bench.fire(option.trigger, facts=facts, dry_run=True)
                fired = True
            except EngineError:
                fired = False
            assert fired is option.allowed, option


def test_acts_on_the_machinery_are_audited(bench: Bench) -> None:
    """Law 12: acts on queues, effects and events go to an audit table."""
    bench.engine.audit(actor="admin:jane", act="retry_effect", target="effect:7", reason="try again", tries=3)
    [row] = bench.engine.tables.audit.select()
    assert (row.actor, row.act, row.target, row.reason, row.details) == (
        "admin:jane", "retry_effect", "effect:7", "try again", '{"tries":3}',
    )  # fmt: skip
    assert row.created_at == bench.clock.now()
