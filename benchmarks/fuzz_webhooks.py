"""The long run of fuzzed bodies, headers and lengths to both webhooks, over the wire to real gunicorn.

    python -m benchmarks.fuzz_webhooks                           # 100,000 requests
    python -m benchmarks.fuzz_webhooks --requests 1000 --first 4711

No 5xx, nothing taken in that nobody signed, nothing written but what was taken in. The same seed makes the same
request, but for its time stamp; exit status 1 if anything was wrong, with the seed of each finding.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.wire import fuzz
from tests.support.apps import gunicorn, open_test_app


def main() -> int:
    """Fuzz, count, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        app = open_test_app(folder)
        began = time.monotonic()
        with gunicorn(folder, "smi_workflow.web.site:create_app()", app.settings) as (url, log):
            tally = fuzz(url, range(options.first, options.first + options.requests), options.threads)
        seconds = time.monotonic() - began
        kept = {row.event_id for row in app.tables.events.select(app.tables.events.event_id)}
        traces = log.read_text(errors="replace").count("Traceback")
        app.close()
    told = ", ".join(f"{status or 'closed'}: {count:,}" for status, count in sorted(tally.statuses.items()))
    print(f"{options.requests:,} requests in {seconds:.0f} s: {told}")
    print(f"taken in {tally.accepted:,}, kept {len(kept):,}; faults {len(tally.faults)}, traces logged {traces}")
    print("\n".join(tally.faults[:20]))
    # Two with spoilt bodies may name one event, which is kept once.
    is_right = tally.genuine <= kept and len(kept) <= tally.accepted
    return 0 if is_right and not tally.faults and not traces else 1


if __name__ == "__main__":
    sys.exit(main())
