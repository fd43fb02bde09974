"""Owns the files on the local disk: checked images in, bytes out. Called by effects, web and jobs' retention."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

from smi_workflow.engine.points import Point, reach
from smi_workflow.errors import ConfigError, InvalidInput, ServiceRefused, ServiceUnavailable
from smi_workflow.integrations.images import CONTENT_TYPES, EXTENSIONS, ImageFacts, inspect_image

SERVICE = "storage"
INCOMING = ".incoming"
_NO_SUCH_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NAME = re.compile(r"(?!.*//)[A-Za-z0-9_-][A-Za-z0-9._/-]{0,199}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """How large an image may be: bytes of the file, and width times height."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image in the storage, as checked; dimensions are of the stored pixels, EXIF left aside."""

    name: str
    width: int
    height: int
    format: str
    content_type: str
    size_bytes: int
    sha256: str


class FileStorage:
    """Keeps files in one folder. Half-written ones live in `.incoming`, on the same file system.

    Args:
        url: `file:///absolute/path`; the folder is made when first needed.
    Raises:
        ConfigError: any other URL.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ConfigError(f"SMI_STORAGE_URL must be file:///absolute/path, not {url!r}") from None
        folder = Path(unquote(parts.path))
        plain = parts.netloc in ("", "localhost") and not parts.query and not parts.fragment
        if parts.scheme != "file" or not plain or not folder.is_absolute() or "\0" in str(folder):
            raise ConfigError(f"SMI_STORAGE_URL must be file:///absolute/path, not {url!r}")
        self._root = folder

    def path(self, name: str) -> Path:
        """Where a file of this name is, or would be.

        Raises:
            InvalidInput: a name that is absolute, climbs, hides or has odd characters.
        """
        if not _NAME.fullmatch(name) or any(part.startswith(".") for part in name.split("/")):
            raise InvalidInput("name", f"{name[:200]!r} cannot name a stored file")
        if name.endswith("/"):
            raise InvalidInput("name", "names a folder")
        return self._root / name

    def store_image(
        self,
        name_stem: str,
        write: Callable[[BinaryIO], object],
        *,
        limits: ImageLimits,
        expected_size: tuple[int, int] | None = None,
    ) -> StoredImage:
        """Take in an image, check it, and put it in place at once and for good.

        Storing again under the same stem replaces what was there, in whatever format.

        Args:
            name_stem: the name without its extension, which the image's real format decides.
            write: writes the file into what it is given; its errors come out unchanged.
            expected_size: width and height that it must have.
        Returns: the image, under the name that it can be opened with.
        Raises:
            InvalidInput: the stem.
            ServiceRefused: `too_large`, `not_an_image`, `unsupported_format`, `too_many_pixels`,
                `wrong_dimensions`; nothing is left behind.
            ServiceUnavailable: the disk is full or failing.
        """
        self.path(f"{name_stem}.{EXTENSIONS['WEBP']}")
        with self._incoming() as (handle, temporary):
            write(cast(BinaryIO, _BoundedWriter(handle, limits.max_bytes)))
            with _disk_trouble():
                os.fsync(handle)
                reach(Point.FILE_WRITTEN)
                with temporary.open("rb") as file:
                    facts = inspect_image(file, max_pixels=limits.max_pixels, expected_size=expected_size)
                    stored = _stored(f"{name_stem}.{EXTENSIONS[facts.format]}", facts, file)
                target = self.path(stored.name)
                self._make_folder(target.parent)
                temporary.replace(target)
                for extension in EXTENSIONS.values():
                    if (other := self.path(f"{name_stem}.{extension}")) != target:
                        other.unlink(missing_ok=True)
                _sync_folder(target.parent)
            reach(Point.FILE_PLACED)
        return stored

    def describe(self, name: str) -> StoredImage | None:
        """Check a stored image once more, to find out whether an earlier attempt stored it.

        Args:
            name: a stored name, or a stem as given to `store_image`.
        Returns: the image, or None when there is none that is whole.
        """
        given = self.path(name)
        candidates = (given, *(given.with_name(f"{given.name}.{end}") for end in EXTENSIONS.values()))
        with _disk_trouble():
            found = next((path for path in candidates if path.is_file()), None)
            if found is None:
                return None
            with found.open("rb") as file:
                try:
                    facts = inspect_image(file)
                except ServiceRefused:
                    return None
                return _stored(found.relative_to(self._root).as_posix(), facts, file)

    def open(self, name: str) -> BinaryIO:
        """Open a stored file for reading; the caller closes it.

        Raises:
            ServiceRefused: `not_found`.
        """
        with _disk_trouble(), _must_exist():
            return self.path(name).open("rb")

    def size(self, name: str) -> int:
        """The bytes of a stored file.

        Raises:
            ServiceRefused: `not_found`.
        """
        with _disk_trouble(), _must_exist():
            return self.path(name).stat().st_size

    def exists(self, name: str) -> bool:
        """Tell whether a file of this name is stored."""
        with _disk_trouble():
            return self.path(name).is_file()

    def remove(self, name: str) -> bool:
        """Remove a stored file for good; False if it was not there."""
        target = self.path(name)
        with _disk_trouble():
            try:
                target.unlink()
            except _NO_SUCH_FILE:
                return False
            _sync_folder(target.parent)
        reach(Point.FILE_REMOVED)
        return True

    def sweep_incoming(self, older_than_seconds: float, now: float) -> int:
        """Remove what killed workers left half-written.

        Args:
            older_than_seconds: longer than any store may take.
            now: seconds since the epoch.
        Returns: how many files went.
        """
        removed = 0
        with _disk_trouble():
            for file in (self._root / INCOMING).glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    if file.stat().st_mtime < now - older_than_seconds:
                        file.unlink()
                        removed += 1
        return removed

    @contextmanager
    def _incoming(self) -> Iterator[tuple[int, Path]]:
        with _disk_trouble():
            folder = self._root / INCOMING
            self._make_folder(folder)
            handle, path = tempfile.mkstemp(suffix=".part", dir=folder)
        try:
            yield handle, Path(path)
        finally:
            os.close(handle)
            Path(path).unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and its parents so that they survive a power cut."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


class _BoundedWriter(io.BufferedIOBase):
    """Has no file number: Pillow, for one, would write to that, past the limit."""

    def __init__(self, handle: int, max_bytes: int) -> None:
        super().__init__()
        self._handle = handle
        self._max_bytes = max_bytes
        self._written = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        left = memoryview(data).cast("B")
        size = len(left)
        self._written += size
        if self._written > self._max_bytes:
            raise ServiceRefused(SERVICE, f"the file is larger than {self._max_bytes} bytes", code="too_large")
        with _disk_trouble():
            while left:
                left = left[os.write(self._handle, left) :]
        return size


def _stored(name: str, facts: ImageFacts, file: io.BufferedReader) -> StoredImage:
    file.seek(0)
    return StoredImage(
        name,
        facts.width,
        facts.height,
        facts.format,
        CONTENT_TYPES[facts.format],
        os.fstat(file.fileno()).st_size,
        hashlib.file_digest(file, "sha256").hexdigest(),
    )


@contextmanager
def _disk_trouble() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"the disk failed: {error.strerror or 'unknown error'}"
        raise ServiceUnavailable(SERVICE, message, code="disk_failed") from error


@contextmanager
def _must_exist() -> Iterator[None]:
    try:
        yield
    except _NO_SUCH_FILE as error:
        raise ServiceRefused(SERVICE, "there is no such file", code="not_found") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
