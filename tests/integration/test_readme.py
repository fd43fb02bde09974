"""The README tells the truth: it names everything there is, its picture is current, its examples run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer.main
from packaging.requirements import Requirement

from smi_workflow.app import WORKFLOWS
from smi_workflow.cli.main import app as cli
from smi_workflow.engine.picture import svg
from smi_workflow.engine.workflow import Workflow
from smi_workflow.integrations.hooks import HookPoster
from smi_workflow.settings import Settings
from smi_workflow.web.site import create_app
from tests.integration.test_supply import DIRECT
from tests.support.apps import finished_job, open_test_app, picture, running_shop
from tests.support.contracts import REPOSITORY
from tests.support.receivers import SECRET, running_receiver

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# An alert is open or closed: there is nothing to be drawn.
PICTURED = [flow for flow in WORKFLOWS if flow.name != "alert"]
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def commands(group: Any, path: tuple[str, ...] = ("smi",)) -> list[str]:
    """Every command below a group, spelled out."""
    if not hasattr(group, "commands"):
        return [" ".join(path)]
    return [name for key, sub in group.commands.items() for name in commands(sub, (*path, key))]


@pytest.mark.parametrize(
    "name",
    [
        *(state.name for flow in WORKFLOWS for state in flow.states),
        *(trigger for flow in WORKFLOWS for trigger in flow.triggers()),
        *(effect for flow in WORKFLOWS for effect in flow.effects()),
        *(f"SMI_{name.upper()}" for name in Settings.model_fields),
    ],
)
def test_everything_declared_is_named(name: str) -> None:
    assert re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", README), f"the README does not mention {name}"


def test_every_command_is_named() -> None:
    missing = [name for name in commands(typer.main.get_command(cli)) if name not in README]
    assert not missing


def test_every_route_is_named(tmp_path: Path) -> None:
    app = open_test_app(tmp_path)
    site = create_app(app)
    told = {path for _, path in re.findall(r"`(GET|POST) (/[^`]*)`", README)}
    rules = {re.sub(r"<\w+:", "<", rule.rule) for rule in site.url_map.iter_rules() if rule.endpoint != "static"}
    app.close()
    assert rules == told


@pytest.mark.parametrize("workflow", PICTURED, ids=lambda workflow: workflow.name)
def test_the_pictures_are_current(workflow: Workflow) -> None:
    kept = REPOSITORY / "config" / "pictures" / f"{workflow.name}.svg"
    assert kept.read_text(encoding="utf-8").strip() == svg(workflow).strip(), (
        f"run: smi graph {workflow.name} --format svg --output {kept.relative_to(REPOSITORY)}"
    )


def test_the_workflow_of_ones_own_runs(tmp_path: Path) -> None:
    run_example(next(text for text in EXAMPLES if "class Parcel" in text), tmp_path, {})


def test_the_five_line_script_runs(tmp_path: Path) -> None:
    app = open_test_app(tmp_path)
    columns: dict[str, Any] = {"status": "failed", "payment_status": "paid", "paid_cents": 384}
    job = finished_job(app, picture(240, 160), **columns)[0].job_id
    environment = {
        "SMI_DATABASE_URL": app.settings.database_url,
        "SMI_STORAGE_URL": app.settings.storage_url,
        "SMI_VAR_DIR": str(tmp_path),
        "SMI_SECRET_KEY": "k" * 40,
        "SMI_STRIPE_API_KEY": "sk_test_x",
        "SMI_STRIPE_WEBHOOK_SECRET": "whsec_x",
        "SMI_UPSAMPLER_API_KEY": "x",
    }
    script = next(text for text in EXAMPLES if "open_app" in text)
    run_example(f"job_id = {job!r}\n{script}", tmp_path, environment)
    history = app.jobs.history(job)
    app.close()
    assert (history[-1].trigger, history[-1].actor, history[-1].to_state) == ("retry", "admin:jane", "pending")


def test_a_receiver_verifies_a_hook_as_told(tmp_path: Path) -> None:
    script = next(text for text in EXAMPLES if "standardwebhooks" in text)
    with running_receiver() as receiver:
        HookPoster([SECRET]).post(
            receiver.url, '{"type": "job_failed", "data": {}}', receiver="r1", message_id="msg-1",
            now=datetime.now(UTC),
        )  # fmt: skip
    (message,) = receiver.messages
    call = f"receive({message.body.encode()!r}, {message.headers!r})"
    run_example(f"{script}\nassert {call} == ('msg-1', 'job_failed', {{}})", tmp_path, {})


def test_a_listener_hears_as_told(tmp_path: Path) -> None:
    script = next(text for text in EXAMPLES if "smi_job_completed" in text)
    sent = "hooks.signal('smi_job_completed').send(SimpleNamespace(trigger='t', sequence=6), job_id='j')"
    run_example(f"from types import SimpleNamespace\n{script}\nassert {sent}", tmp_path, {})


def test_the_shop_sells_through_curl_alone(tmp_path: Path) -> None:
    """Every example of its section, in order, and what a reader does between them."""
    if shutil.which("curl") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("curl is not here")
    section = README.partition("### Selling through the HTTP interface alone")[2].partition("\n### ")[0]
    examples = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    token = "t" * 40
    with running_shop(tmp_path, admin_tokens=f"jane:{token}") as shop:
        shop.site.files["/photo.png"] = picture(240, 160)
        known = {"SHOP": shop.url, "IMAGE": f"{shop.site.url}/photo.png", "TOKEN": token}

        def run(example: str) -> list[Any]:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", example], env={"PATH": os.environ["PATH"], **known},
                capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            answers, left = [], done.stdout
            while left:
                answer, end = json.JSONDecoder().raw_decode(left)
                answers.append(answer)
                left = left[end:].lstrip()
            return answers

        prices, order, ask, manage = examples
        (quotes,) = run(prices)
        assert [one["resolution"] for one in quotes["quotes"]] == ["4x", "8x"]
        (ordered,), (again,) = run(order), run(order)
        assert ordered == again
        assert ordered["amount"] == quotes["quotes"][0]["amount"]
        known["JOB"] = ordered["job_id"]
        assert run(ask)[0]["status"] == "awaiting_payment"
        shop.pay(ordered["checkout_url"])
        shop.work_until(lambda: run(ask)[0]["final"])
        assert run(ask)[0]["status"] == "completed"
        listed, detail, moved = run(manage)
        assert [job["job_id"] for job in listed["jobs"]] == [known["JOB"]]
        assert {option["trigger"] for option in detail["options"]} >= {"refund", "resend"}
        assert (moved["trigger"], moved["actor"], moved["to_status"]) == ("refund", "admin:jane", "completed")
        shop.work_until(lambda: shop.job(known["JOB"]).refunded_cents == 20)


def run_example(text: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a script the way a reader would, warnings shown as errors."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SMI_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text], cwd=folder,
        env={**clean, "SMI_ENV_FILE": os.devnull, **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", DIRECT)
def test_every_direct_dependency_is_justified(line: str) -> None:
    table = README.partition("### Dependencies")[2]
    name = re.escape(Requirement(line).name)
    assert re.search(rf"^\| ([\w-]+, )*{name}(, [\w-]+)* \|", table, re.I | re.M)
