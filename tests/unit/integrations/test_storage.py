"""Which URLs and names the storage takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from smi_workflow.errors import ConfigError, InvalidInput
from smi_workflow.integrations.storage import FileStorage, ImageLimits


@pytest.mark.parametrize(
    "url",
    [
        "", "/var/files", "file://relative/path", "file:relative", "file://", "s3://bucket/x", "https://a.com/x",
        "file://host/var/files", "file:///var/files?x=1", "file:///var/files#x", "file:///var/%00",
    ],
)  # fmt: skip
def test_only_absolute_file_urls_are_taken(url: str) -> None:
    with pytest.raises(ConfigError):
        FileStorage(url)


@pytest.mark.parametrize("url", ["file:///var/my%20files", "file://localhost/var/my%20files"])
def test_a_url_is_unquoted(url: str) -> None:
    assert FileStorage(url).path("a/b.png") == Path("/var/my files/a/b.png")


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", "./a", "a/./b", "a//b", "a/", ".incoming/a.part",
        "a/.hidden", "a\\b", "a b", "a\0b", "a\n", "é.png", "~/a", "C:/a", "%2e%2e/a", "a" * 201,
    ],
)  # fmt: skip
def test_names_that_climb_hide_or_surprise_are_refused(name: str) -> None:
    storage = FileStorage("file:///var/files")
    for use in (storage.path, storage.open, storage.size, storage.exists, storage.remove, storage.describe):
        with pytest.raises(InvalidInput) as caught:
            use(name)
        assert caught.value.field == "name"


@pytest.mark.parametrize("stem", ["", "../a", "a/", "a" * 198])
def test_a_stem_is_checked_before_anything_is_written(stem: str) -> None:
    def write(_: object) -> None:
        pytest.fail("nothing may be written")

    limits = ImageLimits(max_bytes=1, max_pixels=1)
    with pytest.raises(InvalidInput):
        FileStorage("file:///nonexistent/files").store_image(stem, write, limits=limits)
