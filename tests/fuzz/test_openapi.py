"""The HTTP interface, as its OpenAPI document says: schemathesis makes up what fits it and what does not.

Called by pytest. Every answer has a declared status, type, schema and headers; nothing is a 5xx, what does not fit
is refused, no admin route is open without a token, and methods that are not there are said so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from smi_workflow.app import MIGRATIONS, App, reach_outside
from smi_workflow.engine.migrate import migrate
from smi_workflow.integrations.fetching import Fetched, FetchPolicy, check_url
from smi_workflow.jobs.model import JobStatus
from smi_workflow.web import limits
from smi_workflow.web.models import EXAMPLE_JOB
from smi_workflow.web.site import create_app
from tests.fuzz.fuzzed import WIDE
from tests.support.apps import Rung, finished_job, picture, test_settings
from tests.support.desks import Desk
from tests.support.engines import HandClock
from tests.support.sandbox import running_sandbox

TOKEN = "t" * 40
EXAMPLES = 400 if WIDE else 40


class Stage:
    """The site under test. The document needs no database, so that one without any writes it for pytest."""

    def __init__(self) -> None:
        self.site = create_app(App(test_settings(Path("/nonexistent"), database_url="sqlite://")))

    def __call__(self, *request: Any) -> Any:
        return self.site(*request)


stage = Stage()
api = schemathesis.openapi.from_wsgi("/openapi.json", stage)


@api.auth()
class Jane:
    """Shows the token, but where a request without one, or with another, is what is tried."""

    def get(self, case: Any, context: Any) -> str:
        """The token."""
        return TOKEN

    def set(self, case: Any, data: str, context: Any) -> None:
        """Show it."""
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}


def an_image_everywhere(url: str, into: BinaryIO, policy: FetchPolicy, *, service: str = "source") -> Fetched:
    """A fetch that finds the picture of the document's example behind every address that may be fetched."""
    content = picture(240, 160)
    into.write(content)
    return Fetched(check_url(url, policy, service=service), "image/png", len(content), "0" * 64)


@pytest.fixture(scope="module", autouse=True)
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The site with jobs in every state, and a Stripe that answers."""
    folder = tmp_path_factory.mktemp("openapi")
    patch = pytest.MonkeyPatch()
    patch.setattr(limits, "FAILURES_RATE", "1000000/minute")
    with running_sandbox(folder / "sandbox") as sandbox:
        settings = test_settings(folder, sandbox, admin_tokens=f"jane:{TOKEN}")
        outside = replace(reach_outside(settings), fetch=an_image_everywhere)
        clock = HandClock()
        app = App(settings, ring=Rung(), clock=clock, outside=outside)
        migrate(app.database, MIGRATIONS, prefix=settings.table_prefix)
        desk = Desk(app, clock, Rung())
        for status in JobStatus:
            desk.put(status)
        finished_job(app, picture(8, 8), job_id=EXAMPLE_JOB)
        stage.site = create_app(app)
        yield
        app.close()
    patch.undo()


@api.parametrize()
@settings(
    max_examples=EXAMPLES, derandomize=not WIDE, database=None, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_the_interface_is_as_documented(case: Any) -> None:
    # A URL that fits the schema need not lead to an image, nor a trigger fit the job's state.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
