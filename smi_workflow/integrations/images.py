"""Owns what counts as an image: its format, its size, and whether it decodes to the end. Called by storage.py."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from PIL.Image import DecompressionBombError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from smi_workflow.errors import ServiceRefused

EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
CONTENT_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}

# The plugins' own classes, not Image.open: its bomb warning is one global number for the whole process,
# and cannot know the limit of this call. Pixels are counted here instead, before anything is decoded.
_OPENERS: dict[str, type[ImageFile]] = {"PNG": PngImageFile, "JPEG": JpegImageFile, "WEBP": WebPImageFile}
_OTHER_IMAGES = (b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"8BPS", b"\0\0\1\0", b"\xff\x0a")
_BROKEN = (
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a file turned out to be; width and height are as stored, before any EXIF rotation."""

    format: str
    width: int
    height: int


def inspect_image(
    file: BinaryIO, *, max_pixels: int | None = None, expected_size: tuple[int, int] | None = None
) -> ImageFacts:
    """Make sure that a file is a whole still image: checksums, and every pixel decoded.

    Args:
        file: seekable; left at any position.
        max_pixels: refused before decoding above this; None: any.
        expected_size: width and height that it must have.
    Raises:
        ServiceRefused: `not_an_image`, `unsupported_format`, `too_many_pixels`, `wrong_dimensions`.
        OSError: the file cannot be read.
    """
    file.seek(0)
    image_format = _sniff(file.read(32))
    try:
        width, height = _read_size(file, image_format)
        if width < 1 or height < 1:
            raise _refusal("not_an_image", "the image has no pixels")
        if max_pixels is not None and width * height > max_pixels:
            raise _refusal("too_many_pixels", f"{width} x {height} is more than {max_pixels} pixels")
        if expected_size is not None and (width, height) != expected_size:
            wanted = f"{expected_size[0]} x {expected_size[1]}"
            raise _refusal("wrong_dimensions", f"the image is {width} x {height} instead of {wanted}")
        _decode(file, image_format, (width, height))
    except DecompressionBombError as error:
        raise _refusal("too_many_pixels", "the image is too large to decode") from error
    except OSError as error:
        # Pillow reports broken images as OSError too; only the system's own carry a number.
        if error.errno is not None:
            raise
        raise _refusal("not_an_image", "the image is damaged or cut short") from error
    except _BROKEN as error:
        raise _refusal("not_an_image", "the image is damaged or cut short") from error
    return ImageFacts(image_format, width, height)


def _sniff(start: bytes) -> str:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith(_OTHER_IMAGES) or start[4:8] == b"ftyp":
        raise _refusal("unsupported_format", "only PNG, JPEG and WebP images are taken")
    raise _refusal("not_an_image", "this is not an image")


def _read_size(file: BinaryIO, image_format: str) -> tuple[int, int]:
    file.seek(0)
    if image_format == "WEBP":
        # Merely opening one allocates its whole canvas.
        return _webp_size(file.read(30))
    with _OPENERS[image_format](file) as image:
        return image.size


def _webp_size(start: bytes) -> tuple[int, int]:
    """Read the canvas from the header. Source: RFC 9649, WebP image format."""
    kind = start[12:16]
    if kind == b"VP8 " and start[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", start[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and start[20] == 0x2F:
        bits = int.from_bytes(start[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(start[24:27], "little") + 1, int.from_bytes(start[27:30], "little") + 1
    raise _refusal("not_an_image", "the WebP header is damaged")


def _decode(file: BinaryIO, image_format: str, size: tuple[int, int]) -> None:
    opener = _OPENERS[image_format]
    file.seek(0)
    with opener(file) as image:
        if image.size != size:
            raise _refusal("not_an_image", "the image contradicts its own header")
        if getattr(image, "is_animated", False):
            raise _refusal("unsupported_format", "animations are not taken")
        image.verify()
        # verify() stops at the last chunk's name, four bytes before the end.
        if image_format == "PNG" and len(file.read(4)) < 4:
            raise _refusal("not_an_image", "the image is cut short")
    # verify() checks checksums only and leaves the image unusable.
    file.seek(0)
    with opener(file) as image:
        image.load()


def _refusal(code: str, message: str) -> ServiceRefused:
    return ServiceRefused("storage", message, code=code)
