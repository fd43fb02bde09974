"""What receivers are called, and what they are told of a job. Called by pytest."""

from __future__ import annotations

from typing import Any

from smi_workflow.jobs.hooks import messages, receiver_name, receivers, url_of
from smi_workflow.jobs.lifecycle import JOB
from smi_workflow.settings import Settings
from tests.unit.jobs.cases import job_case
from tests.unit.test_settings import HOOK_SECRET

URLS = ("https://one.example/hook?key=hush", "https://two.example/hook")
OLD, NEW = "o" * 40, "n" * 40


def settings(urls: tuple[str, ...] = URLS, keys: str = OLD) -> Settings:
    """Settings with these receivers."""
    fields: dict[str, Any] = {
        "secret_key": keys, "stripe_api_key": "sk_test_1", "stripe_webhook_secret": "whsec_1",
        "upsampler_api_key": "up_1", "hook_urls": ",".join(urls), "hook_secret": HOOK_SECRET, "_env_file": None,
    }  # fmt: skip
    return Settings(**fields)


def test_a_receiver_is_named_without_its_url() -> None:
    named = receivers(settings())
    assert list(named.values()) == list(URLS)
    assert all(len(name) == 16 and "hush" not in name for name in named)
    assert len(set(named)) == 2
    # Who knows the URL, but not the key, cannot tell whose name it is.
    assert set(named).isdisjoint(receivers(settings(keys=NEW)))


def test_a_name_finds_its_url_while_keys_roll() -> None:
    for url in URLS:
        assert url_of(settings(keys=f"{NEW},{OLD}"), receiver_name(OLD.encode(), url)) == url
        assert url_of(settings(keys=NEW), receiver_name(OLD.encode(), url)) is None
        assert url_of(settings(urls=()), receiver_name(OLD.encode(), url)) is None


def test_each_receiver_is_told_the_same() -> None:
    case = job_case("completed", version=6)
    case.policy, case.hook = settings(), "smi_job_completed"
    first, second = messages(case)
    assert {**first, "receiver": ""} == {**second, "receiver": ""} == {
        "hook": "job_completed", "sequence": 6, "status": "completed", "at": "2026-03-01T12:00:00+00:00",
        "receiver": "",
    }  # fmt: skip
    assert [first["receiver"], second["receiver"]] == list(receivers(case.policy))
    case.policy = settings(urls=())
    assert messages(case) == []


def test_what_is_told_is_what_the_design_lists() -> None:
    hooks = {move.hook for move in JOB.moves if move.hook} | {JOB.start_hook}
    assert hooks == {"smi_job_created", "smi_payment_completed", "smi_job_completed", "smi_job_failed"}
    assert {move.to for move in JOB.moves if move.hook == "smi_job_failed"} == {"failed"}
    into_failed = [move for move in JOB.moves if move.to == "failed" and move.trigger != "override"]
    assert all(move.hook == "smi_job_failed" for move in into_failed)
