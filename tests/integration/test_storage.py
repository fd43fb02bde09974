"""The storage on a real disk, with real images, whole and broken."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from PIL import Image

from smi_workflow.errors import InvalidInput, ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.storage import FileStorage, ImageLimits, StoredImage

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=100_000)
ORIENTATION = 0x0112


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage((tmp_path / "files").as_uri())


def picture(image_format: str = "PNG", size: tuple[int, int] = (64, 48), mode: str = "RGB", **save: Any) -> bytes:
    count = size[0] * size[1] * len(Image.new(mode, (1, 1)).tobytes())
    noise = Image.frombytes(mode, size, random.Random(7).randbytes(count))
    into = io.BytesIO()
    noise.save(into, image_format, **save)
    return into.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int) -> bytes:
    """A small file with valid checksums whose header claims whatever is wanted."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def webp_claiming(kind: bytes, width: int, height: int) -> bytes:
    if kind == b"VP8X":
        body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        body = b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + bytes(20)
    else:
        body = b"\x30\x01\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(20)
    data = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(data)) + data


def writing(data: bytes) -> Callable[[BinaryIO], object]:
    return lambda into: into.write(data)


def files(storage: FileStorage) -> list[str]:
    root = storage.path("x").parent
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def refusal(storage: FileStorage, data: bytes, **options: Any) -> str | None:
    with pytest.raises(ServiceRefused) as caught:
        storage.store_image("jobs/1", writing(data), **{"limits": LIMITS, **options})
    assert caught.value.service == "storage"
    assert files(storage) == []
    return caught.value.code


@pytest.mark.parametrize(
    ("image_format", "mode", "extension", "content_type"),
    [
        ("PNG", "RGBA", "png", "image/png"),
        ("PNG", "L", "png", "image/png"),
        ("JPEG", "RGB", "jpg", "image/jpeg"),
        ("JPEG", "CMYK", "jpg", "image/jpeg"),
        ("WEBP", "RGB", "webp", "image/webp"),
        ("WEBP", "RGBA", "webp", "image/webp"),
    ],
)
def test_an_image_is_stored_under_its_real_format(
    storage: FileStorage, image_format: str, mode: str, extension: str, content_type: str
) -> None:
    data = picture(image_format, mode=mode)
    stored = storage.store_image("jobs/a-1", writing(data), limits=LIMITS, expected_size=(64, 48))
    name, digest = f"jobs/a-1.{extension}", hashlib.sha256(data).hexdigest()
    assert stored == StoredImage(name, 64, 48, image_format, content_type, len(data), digest)
    with storage.open(stored.name) as file:
        assert file.read() == data
    assert storage.size(stored.name) == len(data)
    assert files(storage) == [stored.name]
    assert storage.describe(stored.name) == storage.describe("jobs/a-1") == stored


@pytest.mark.parametrize("options", [{"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}])
def test_every_kind_of_webp_header_is_understood(storage: FileStorage, options: dict[str, Any]) -> None:
    data = picture("WEBP", (33, 21), **options)
    stored = storage.store_image("a", writing(data), limits=LIMITS)
    assert (stored.width, stored.height) == (33, 21)


def test_dimensions_are_those_of_the_stored_pixels(storage: FileStorage) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = storage.store_image("a", writing(picture("JPEG", (64, 48), exif=exif)), limits=LIMITS)
    assert (stored.width, stored.height) == (64, 48)


def test_pillow_may_write_into_it(storage: FileStorage) -> None:
    image = Image.new("RGB", (64, 48))
    stored = storage.store_image("a", lambda into: image.save(into, "JPEG"), limits=LIMITS)
    assert stored.format == "JPEG"
    with pytest.raises(ServiceRefused) as caught:
        storage.store_image("b", lambda into: image.save(into, "JPEG"), limits=ImageLimits(100, 10_000))
    assert caught.value.code == "too_large"


def test_storing_again_replaces_in_whatever_format(storage: FileStorage) -> None:
    storage.store_image("a", writing(picture("PNG")), limits=LIMITS)
    again = picture("PNG", (10, 10))
    assert storage.store_image("a", writing(again), limits=LIMITS).width == 10
    assert storage.size("a.png") == len(again)
    storage.store_image("a", writing(picture("JPEG")), limits=LIMITS)
    assert files(storage) == ["a.jpg"]


def test_a_failure_leaves_what_was_stored_before(storage: FileStorage) -> None:
    before = storage.store_image("a", writing(picture()), limits=LIMITS)
    with pytest.raises(ServiceRefused):
        storage.store_image("a", writing(b"<html>"), limits=LIMITS)
    assert storage.describe("a") == before
    assert files(storage) == ["a.png"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not_an_image"),
        (b"<html>not found</html>", "not_an_image"),
        (b"\x89PNG\r\n\x1a\n", "not_an_image"),
        (b"\xff\xd8\xff", "not_an_image"),
        (b"RIFF\x04\0\0\0WEBP", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not_an_image"),
        (b"\0\0\0\x20ftypavif", "unsupported_format"),
        (picture("GIF"), "unsupported_format"),
        (picture("BMP"), "unsupported_format"),
        (picture("TIFF"), "unsupported_format"),
        (png_claiming(0, 10), "not_an_image"),
        (png_claiming(100, 100), "not_an_image"),
        (png_claiming(60_000, 60_000), "too_many_pixels"),
        (png_claiming(2**31 - 1, 2**31 - 1), "too_many_pixels"),
        (webp_claiming(b"VP8X", 16_384, 16_384), "too_many_pixels"),
        (webp_claiming(b"VP8L", 16_384, 16_384), "too_many_pixels"),
        (webp_claiming(b"VP8 ", 16_383, 16_383), "too_many_pixels"),
        (webp_claiming(b"VP8X", 400, 400), "too_many_pixels"),
        (webp_claiming(b"VP8X", 30, 30), "not_an_image"),
        (webp_claiming(b"ALPH", 30, 30), "not_an_image"),
        (picture("PNG", save_all=True, append_images=[Image.new("RGB", (64, 48))]), "unsupported_format"),
        (picture("WEBP", save_all=True, append_images=[Image.new("RGB", (64, 48))]), "unsupported_format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_a_whole_still_image_is_refused(storage: FileStorage, data: bytes, code: str) -> None:
    assert refusal(storage, data) == code


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_an_image_cut_short_is_refused(storage: FileStorage, image_format: str, part: float) -> None:
    data = picture(image_format, (200, 200))
    assert refusal(storage, data[: int(len(data) * part)]) == "not_an_image"


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
@pytest.mark.parametrize("missing", [1, 2, 4, 12, 20])
def test_an_image_without_its_very_end_is_refused(storage: FileStorage, image_format: str, missing: int) -> None:
    assert refusal(storage, picture(image_format)[:-missing]) == "not_an_image"


def test_a_png_with_a_flipped_bit_is_refused(storage: FileStorage) -> None:
    data = bytearray(picture("PNG"))
    data[len(data) // 2] ^= 1
    assert refusal(storage, bytes(data)) == "not_an_image"


@pytest.mark.parametrize("size", [(48, 64), (64, 47), (128, 96)])
def test_other_dimensions_than_expected_are_refused(storage: FileStorage, size: tuple[int, int]) -> None:
    assert refusal(storage, picture(), expected_size=size) == "wrong_dimensions"


def test_limits_hold_to_the_pixel_and_to_the_byte(storage: FileStorage) -> None:
    data = picture("PNG", (100, 100))
    assert refusal(storage, data, limits=ImageLimits(len(data) - 1, 10_000)) == "too_large"
    assert refusal(storage, data, limits=ImageLimits(len(data), 9_999)) == "too_many_pixels"
    assert storage.store_image("a", writing(data), limits=ImageLimits(len(data), 10_000)).width == 100


def test_the_limit_is_enforced_while_writing(storage: FileStorage) -> None:
    written = 0

    def endless(into: BinaryIO) -> None:
        nonlocal written
        while written < 10_000_000:
            written += into.write(b"x" * 1000)

    with pytest.raises(ServiceRefused) as caught:
        storage.store_image("a", endless, limits=LIMITS)
    assert caught.value.code == "too_large"
    assert written == LIMITS.max_bytes
    assert files(storage) == []


def test_images_above_pillows_own_warning_and_error_are_fine(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    stored = storage.store_image("a", writing(picture("PNG")), limits=LIMITS)
    assert stored.width == 64
    assert storage.store_image("b", writing(picture("JPEG")), limits=LIMITS).width == 64
    assert storage.describe("a") == stored
    assert refusal(FileStorage(storage.path("c").as_uri()), picture("WEBP")) == "too_many_pixels"


def test_sixty_four_megapixels_are_legal(storage: FileStorage) -> None:
    image = Image.new("L", (8000, 8000), 7)
    limits = ImageLimits(max_bytes=10_000_000, max_pixels=64_000_000)
    stored = storage.store_image("a", lambda into: image.save(into, "PNG"), limits=limits)
    assert stored.width * stored.height == 64_000_000


def test_errors_of_the_writer_come_out_unchanged(storage: FileStorage) -> None:
    problem = ServiceUnavailable("source", "timed out", code="timed_out")
    elsewhere = FileNotFoundError(errno.ENOENT, "not a file of ours")
    for error in (problem, elsewhere):

        def write(into: BinaryIO, error: Exception = error) -> None:
            into.write(b"half")
            raise error

        with pytest.raises(type(error)) as caught:
            storage.store_image("a", write, limits=LIMITS)
        assert caught.value is error
        assert files(storage) == []


@pytest.mark.parametrize("step", ["write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_or_failing_disk_is_transient(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    before = storage.store_image("a", writing(picture()), limits=LIMITS)

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"smi_workflow.integrations.storage.os.{step}", fail)
        with pytest.raises(ServiceUnavailable) as caught:
            storage.store_image("a", writing(picture("JPEG")), limits=LIMITS)
    assert caught.value.code == "disk_failed"
    assert files(storage) == ["a.png"]
    assert storage.describe("a") == before


def test_a_folder_that_cannot_be_made_is_transient(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServiceUnavailable):
        FileStorage((tmp_path / "file" / "below").as_uri()).store_image("a", writing(picture()), limits=LIMITS)


def test_it_is_on_the_disk_before_it_is_in_place(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    really_sync, really_replace = os.fsync, Path.replace

    def sync(handle: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")  # noqa: PTH112
        really_sync(handle)

    def replace(self: Path, target: Path) -> Path:
        steps.append("replace")
        return really_replace(self, target)

    storage.store_image("a", writing(picture()), limits=LIMITS)
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    storage.store_image("a", writing(picture()), limits=LIMITS)
    assert steps == ["file", "replace", "folder"]


def test_a_file_that_is_not_there(storage: FileStorage) -> None:
    assert not storage.exists("jobs/1.png")
    assert storage.describe("jobs/1.png") is None
    assert storage.describe("jobs/1") is None
    assert storage.remove("jobs/1.png") is False
    assert storage.sweep_incoming(0, 1e12) == 0
    for use in (storage.open, storage.size):
        with pytest.raises(ServiceRefused) as caught:
            use("jobs/1.png")
        assert caught.value.code == "not_found"


def test_a_removed_file_is_gone(storage: FileStorage) -> None:
    name = storage.store_image("jobs/1", writing(picture()), limits=LIMITS).name
    assert storage.exists(name)
    assert storage.remove(name) is True
    assert not storage.exists(name)
    assert storage.remove(name) is False
    assert storage.remove("jobs/1.png/x") is False


def test_a_stored_file_that_went_bad_is_not_described(storage: FileStorage) -> None:
    name = storage.store_image("a", writing(picture()), limits=LIMITS).name
    path = storage.path(name)
    path.write_bytes(path.read_bytes()[:-30])
    assert storage.describe(name) is None


def test_only_old_half_written_files_are_swept(storage: FileStorage) -> None:
    storage.store_image("a", writing(picture()), limits=LIMITS)
    incoming = storage.path("a.png").parent / ".incoming"
    for name, age in (("old.part", 301), ("young.part", 299)):
        (incoming / name).touch()
        os.utime(incoming / name, (10_000 - age, 10_000 - age))
    os.utime(storage.path("a.png"), (0, 0))
    assert storage.sweep_incoming(300, 10_000) == 1
    assert files(storage) == [".incoming/young.part", "a.png"]


def test_a_name_cannot_reach_outside(storage: FileStorage) -> None:
    outside = storage.path("x").parent.parent / "secret.png"
    outside.write_bytes(picture())
    with pytest.raises(InvalidInput):
        storage.remove("../secret.png")
    assert outside.exists()
