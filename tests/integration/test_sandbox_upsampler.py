"""Owns the checks of the imitated Upsampler: real images over real HTTP. Called by pytest."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image, UnidentifiedImageError

from smi_workflow.sandbox import Sandbox
from tests.support.sandbox import Site, running_sandbox, running_site, wait_until

AUTH = {"Authorization": "Bearer up_key"}


def picture(width: int, height: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    target = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert(mode).save(target, kind)
    return target.getvalue()


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site() as running:
        running.files["/source.png"] = picture(40, 30)
        yield running


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with running_sandbox(tmp_path) as running:
        yield running


def submit(sandbox: Sandbox, site: Site, factor: float = 4, **changes: Any) -> requests.Response:
    given = {
        "imageUrl": f"{site.url}/source.png",
        "inputImageType": "universal",
        "upscaleFactor": factor,
        **changes,
    }
    body = {"webhook": f"{site.url}/callback", "input": given}
    return requests.post(f"{sandbox.upsampler.api_base}/precise-upscale", json=body, headers=AUTH, timeout=30)


def status(sandbox: Sandbox, submission_id: str) -> Any:
    return requests.get(f"{sandbox.upsampler.api_base}/status/{submission_id}", headers=AUTH, timeout=10).json()


def finished(sandbox: Sandbox, submission_id: str) -> Any:
    wait_until(lambda: status(sandbox, submission_id)["status"] in ("SUCCESS", "FAILED"))
    return status(sandbox, submission_id)


def download(url: str) -> bytes:
    answer = requests.get(url, timeout=10)
    answer.raise_for_status()
    return answer.content


@pytest.mark.parametrize(
    ("mode", "kind", "result_mode"),
    [
        ("RGB", "PNG", "RGB"),
        ("RGBA", "PNG", "RGBA"),
        ("L", "JPEG", "L"),
        ("CMYK", "JPEG", "RGB"),
        ("P", "GIF", "RGB"),
    ],
)
def test_an_image_really_grows_by_the_factor(
    sandbox: Sandbox, site: Site, mode: str, kind: str, result_mode: str
) -> None:
    site.files["/source.png"] = picture(40, 30, mode, kind)
    answer = submit(sandbox, site)
    assert (answer.status_code, answer.json()["creditCost"]) == (200, 1)
    done = finished(sandbox, answer.json()["id"])
    assert (done["status"], done["error"]) == ("SUCCESS", None)
    with Image.open(io.BytesIO(download(done["imageUrl"]))) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (160, 120), result_mode)
        pixels = image.convert("L")
        assert pixels.getpixel((80, 5)) != pixels.getpixel((80, 115))


def test_the_callback_says_what_the_status_call_says(sandbox: Sandbox, site: Site) -> None:
    answer = submit(sandbox, site)
    wait_until(lambda: len(site.posts()) == 1)
    callback = site.posts()[0]
    assert (callback.path, callback.json()) == ("/callback", status(sandbox, answer.json()["id"]))
    assert set(callback.json()) == {"id", "status", "imageUrl", "creditCost", "error"}
    assert [one.path for one in site.received if one.method == "GET"] == ["/source.png"]


def test_credits_are_counted_by_the_started_four_megapixels(sandbox: Sandbox, site: Site) -> None:
    site.files["/source.png"] = picture(1000, 501)
    before = sandbox.upsampler.ledger()["credits"]
    answer = submit(sandbox, site, factor=4)
    assert answer.json()["creditCost"] == 3
    assert sandbox.upsampler.ledger()["credits"] == before - 3
    assert finished(sandbox, answer.json()["id"])["status"] == "SUCCESS"


def test_too_large_an_output_is_refused_before_any_work(sandbox: Sandbox, site: Site) -> None:
    site.files["/source.png"] = picture(1001, 1000)
    answer = submit(sandbox, site, factor=8)
    assert (answer.status_code, "exceed" in answer.json()["error"]) == (422, True)
    assert submit(sandbox, site, factor=17).status_code == 422


def test_credits_run_out(tmp_path: Path, site: Site) -> None:
    with running_sandbox(tmp_path, upsampler_credits=1) as sandbox:
        assert submit(sandbox, site).status_code == 200
        answer = submit(sandbox, site)
    assert (answer.status_code, answer.json()) == (402, {"error": "Insufficient credit balance"})


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "HTTP 404"),
        (b"not an image", "could not be read"),
        (picture(40, 30)[:60], "could not be read"),
    ],
)
def test_a_source_that_is_no_use_fails_and_costs_nothing(
    sandbox: Sandbox, site: Site, content: bytes | None, error: str
) -> None:
    site.files.clear()
    if content is not None:
        site.files["/source.png"] = content
    before = sandbox.upsampler.ledger()["credits"]
    answer = submit(sandbox, site)
    assert answer.status_code == 200
    done = finished(sandbox, answer.json()["id"])
    assert (done["status"], error in done["error"], done["imageUrl"]) == ("FAILED", True, None)
    wait_until(lambda: len(site.posts()) == 1)
    assert site.posts()[0].json()["status"] == "FAILED"
    assert sandbox.upsampler.ledger()["credits"] == before


def test_a_source_that_nobody_serves_fails(sandbox: Sandbox, site: Site) -> None:
    answer = submit(sandbox, site, imageUrl="http://127.0.0.1:1/source.png")
    assert "could not be fetched" in finished(sandbox, answer.json()["id"])["error"]


@pytest.mark.parametrize(
    "changes",
    [
        {"imageUrl": "file:///etc/passwd"},
        {"imageUrl": "http://[oops"},
        {"inputImageType": "oil painting"},
        {"upscaleFactor": "4"},
        {"upscaleFactor": True},
    ],
)
def test_bad_input_is_refused(sandbox: Sandbox, site: Site, changes: dict[str, Any]) -> None:
    answer = submit(sandbox, site, **changes)
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)


def test_a_key_is_needed_and_unknown_things_are_not_found(sandbox: Sandbox) -> None:
    base = sandbox.upsampler.api_base
    assert requests.post(f"{base}/precise-upscale", json={}, timeout=10).status_code == 401
    assert requests.post(f"{base}/precise-upscale", data=b"{", headers=AUTH, timeout=10).status_code == 400
    for url in (f"{base}/status/none", f"{base}/nothing", f"{sandbox.upsampler.url}/results/none.png"):
        answer = requests.get(url, headers=AUTH, timeout=10)
        assert (answer.status_code, list(answer.json())) == (404, ["error"])


def test_a_result_can_be_fetched_in_parts_and_is_gone_after_three_hours(sandbox: Sandbox, site: Site) -> None:
    url = finished(sandbox, submit(sandbox, site).json()["id"])["imageUrl"]
    part = requests.get(url, headers={"Range": "bytes=0-7"}, timeout=10)
    assert (part.status_code, part.content) == (206, b"\x89PNG\r\n\x1a\n")
    sandbox.upsampler.clock.advance(3 * 3600)
    assert requests.get(url, timeout=10).status_code == 403


def test_a_callback_is_sent_again_until_it_is_taken(sandbox: Sandbox, site: Site) -> None:
    site.statuses = [500, 503]
    submit(sandbox, site)
    wait_until(lambda: len(site.posts()) == 3)
    wait_until(lambda: len(sandbox.upsampler.ledger()["submissions"][0]["deliveries"]) == 3)
    row = sandbox.upsampler.ledger()["submissions"][0]
    assert [attempt["outcome"] for attempt in row["deliveries"]] == ["failed", "failed", "delivered"]


def order(sandbox: Sandbox, match: dict[str, Any], fault: dict[str, Any]) -> None:
    url = f"{sandbox.upsampler.url}/_sandbox/faults"
    assert requests.post(url, json={"match": match, "fault": fault}, timeout=10).status_code == 201


def test_the_ordered_failure_comes_with_its_text(sandbox: Sandbox, site: Site) -> None:
    order(sandbox, {"result": True}, {"kind": "fail", "text": "GPU on fire"})
    done = finished(sandbox, submit(sandbox, site).json()["id"])
    assert (done["status"], done["error"]) == ("FAILED", "GPU on fire")
    assert finished(sandbox, submit(sandbox, site).json()["id"])["status"] == "SUCCESS"


def test_a_submit_can_fail_in_its_answer(sandbox: Sandbox, site: Site) -> None:
    order(sandbox, {"result": True}, {"kind": "fail_at_submit"})
    answer = submit(sandbox, site).json()
    assert (answer["status"], bool(answer["error"])) == ("FAILED", True)
    assert status(sandbox, answer["id"]) == answer


def test_the_result_can_have_wrong_dimensions(sandbox: Sandbox, site: Site) -> None:
    order(sandbox, {"result": True}, {"kind": "wrong_dimensions"})
    with Image.open(
        io.BytesIO(download(finished(sandbox, submit(sandbox, site).json()["id"])["imageUrl"]))
    ) as image:
        assert image.size == (80, 60)


def test_the_result_can_be_no_image(sandbox: Sandbox, site: Site) -> None:
    order(sandbox, {"result": True}, {"kind": "not_an_image"})
    content = download(finished(sandbox, submit(sandbox, site).json()["id"])["imageUrl"])
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(content))


def test_the_result_can_be_cut_off(sandbox: Sandbox, site: Site) -> None:
    order(sandbox, {"result": True}, {"kind": "truncated"})
    content = download(finished(sandbox, submit(sandbox, site).json()["id"])["imageUrl"])
    with Image.open(io.BytesIO(content)) as image, pytest.raises(OSError):
        image.load()


def test_work_can_go_on_for_ever(sandbox: Sandbox, site: Site) -> None:
    order(sandbox, {"result": True}, {"kind": "never"})
    stuck = submit(sandbox, site).json()["id"]
    wait_until(lambda: status(sandbox, stuck)["status"] == "IN_PROGRESS")
    finished(sandbox, submit(sandbox, site).json()["id"])
    assert status(sandbox, stuck)["status"] == "IN_PROGRESS"


def test_the_callback_can_beat_the_answer(sandbox: Sandbox, site: Site) -> None:
    order(sandbox, {"webhook": "upsampler.success"}, {"kind": "early"})
    answer = submit(sandbox, site).json()
    assert [one.json()["id"] for one in site.posts()] == [answer["id"]]
    assert answer["status"] == "IN_QUEUE"


def test_a_callback_can_be_lost_or_doubled(sandbox: Sandbox, site: Site) -> None:
    order(sandbox, {"webhook": "upsampler.*"}, {"kind": "lost"})
    finished(sandbox, submit(sandbox, site).json()["id"])
    wait_until(lambda: sandbox.upsampler.ledger()["submissions"][0]["deliveries"] != [])
    assert site.posts() == []
    order(sandbox, {"webhook": "upsampler.*"}, {"kind": "duplicate", "copies": 2})
    submit(sandbox, site)
    wait_until(lambda: len(site.posts()) == 2)


def test_an_answer_can_be_lost_although_the_work_is_done(sandbox: Sandbox, site: Site) -> None:
    order(sandbox, {"method": "POST", "path": "/api/v1/precise-upscale"}, {"kind": "reset_after"})
    with pytest.raises(requests.ConnectionError):
        submit(sandbox, site)
    wait_until(lambda: len(site.posts()) == 1)
    assert len(sandbox.upsampler.ledger()["submissions"]) == 1


def test_eight_submissions_at_once_all_come_back(sandbox: Sandbox, site: Site) -> None:
    ids = [submit(sandbox, site).json()["id"] for _ in range(8)]
    wait_until(lambda: len(site.posts()) == 8)
    assert {one.json()["id"] for one in site.posts()} == set(ids)
    assert len({one.json()["imageUrl"] for one in site.posts()}) == 8
