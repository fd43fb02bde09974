"""Both webhooks under real gunicorn, whatever bytes come: no 5xx, nothing accepted unsigned, nothing written.

Called by pytest. The long run is `python -m benchmarks.fuzz_webhooks`; it tells a seed for each finding.
"""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.fuzzed import SEED, WIDE
from tests.fuzz.wire import fuzz, make
from tests.support.apps import gunicorn, open_test_app

REQUESTS = 2_000
FIRST = SEED if WIDE else 0


def test_whatever_bytes_come_over_the_wire(tmp_path: Path) -> None:
    app = open_test_app(tmp_path)
    with gunicorn(tmp_path, "smi_workflow.web.site:create_app()", app.settings) as (url, log):
        tally = fuzz(url, range(FIRST, FIRST + REQUESTS), threads=4)
    assert tally.faults == []
    assert "Traceback" not in log.read_text()
    kept = {row.event_id for row in app.tables.events.select()}
    # Two with spoilt bodies may name one event, which is kept once.
    assert tally.genuine <= kept
    assert REQUESTS / 20 < len(kept) <= tally.accepted
    for other in (app.tables.transitions, app.tables.effects, app.tables.audit, app.job_tables.jobs):
        assert other.select().count() == 0
    app.close()


def test_the_requests_are_of_every_kind() -> None:
    """Else nothing were proven: most must be wrong in some way, and all ways must be taken."""
    made = [make(seed) for seed in range(REQUESTS)]
    assert sum(one.plain for one in made) > REQUESTS / 20
    assert sum(one.whole and not one.proven for one in made) > REQUESTS / 10
    assert sum(one.proven and not one.plain for one in made) > REQUESTS / 5
    assert sum(not one.whole for one in made) > REQUESTS / 5
    assert sum(b"chunked" in one.raw for one in made) > REQUESTS / 20
