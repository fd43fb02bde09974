"""References into WordPress's own database: one that leads nowhere is named, and nothing is kept. By pytest."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from smi_workflow.app import MIGRATIONS
from smi_workflow.engine.database import open_database
from smi_workflow.engine.migrate import migrate
from smi_workflow.errors import InvalidInput
from tests.support.apps import picture, running_shop


@pytest.mark.server("mariadb")
def test_a_post_that_wordpress_has_not_is_named(tmp_path: Path, mariadb_url: str) -> None:
    database = open_database(mariadb_url)
    database.execute_sql(  # type: ignore[no-untyped-call]
        "CREATE TABLE wp_posts (ID BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY)"
    )
    migrate(database, MIGRATIONS, prefix="wp_", wordpress_tables=True)
    database.close()
    with running_shop(tmp_path, database_url=mariadb_url, wordpress_tables=True) as shop:
        for reference in ("post_id", "attachment_id"):
            order = {"image_url": f"{shop.site.url}/photo.png", "resolution": "4x", reference: 7}
            shop.site.files["/photo.png"] = picture(60, 40)
            answer = requests.post(
                f"{shop.url}/api/v1/jobs", json={**order, "image_width": 60, "image_height": 40}, timeout=30
            )
            assert (answer.status_code, answer.json()["field"]) == (422, "post_id")
        job_id = shop.order()["job_id"]
        with pytest.raises(InvalidInput):
            facts = {"fields": {"post_id": 8}}
            shop.app.jobs.fire(job_id, "amend", actor="admin:jane", reason="moved", facts=facts)
        assert [job.job_id for job in shop.app.jobs.get_jobs()] == [job_id]
