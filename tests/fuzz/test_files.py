"""Images of strangers and names of files. Called by pytest, atheris."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from smi_workflow.errors import ConfigError, InvalidInput, ServiceRefused
from smi_workflow.integrations.images import inspect_image
from smi_workflow.integrations.storage import FileStorage
from tests.fuzz.fuzzed import fuzzed
from tests.fuzz.made_up import texts

ROOT = Path("/srv/files")
PIXELS_MAX = 100_000


@cache
def real_images() -> tuple[bytes, ...]:
    """Small ones of every format that is taken, in the forms that decoders have code of their own for."""
    grey = Image.linear_gradient("L").resize((40, 30))
    colour = Image.merge("RGB", (grey, grey.rotate(90).resize((40, 30)), grey))
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colour, "PNG", {}), (colour.convert("P"), "PNG", {}), (grey.convert("1"), "PNG", {}), (grey, "PNG", {}),
        (colour.convert("RGBA"), "PNG", {"dpi": (72, 72)}), (grey.convert("I;16"), "PNG", {}),
        (colour, "JPEG", {}), (grey, "JPEG", {"progressive": True}), (colour.convert("CMYK"), "JPEG", {}),
        (colour, "WEBP", {}), (colour, "WEBP", {"lossless": True}), (colour.convert("RGBA"), "WEBP", {}),
    ]  # fmt: skip
    contents = []
    for image, kind, options in made:
        target = io.BytesIO()
        image.save(target, kind, **options)
        contents.append(target.getvalue())
    return tuple(contents)


@st.composite
def damaged_images(draw: st.DrawFn) -> bytes:
    """A real image with some bytes changed, cut, doubled or put elsewhere."""
    content = bytearray(draw(st.sampled_from(real_images())))
    for _ in range(draw(st.integers(0, 6))):
        if not content:
            break
        # Most of what decoders decide by stands at the beginning.
        last = min(len(content), 64) if draw(st.booleans()) else len(content)
        place = draw(st.integers(0, last - 1))
        change = draw(st.sampled_from(["set", "cut", "insert", "double", "drop"]))
        if change == "set":
            content[place] = draw(st.integers(0, 255))
        elif change == "cut":
            del content[place:]
        elif change == "insert":
            content[place:place] = draw(st.binary(max_size=8))
        elif change == "double":
            content[place:place] = content[place : place + draw(st.integers(1, 40))]
        else:
            del content[place : place + draw(st.integers(1, 40))]
    return bytes(content)


def inspect(content: bytes) -> None:
    """The property of an image, for bytes from anywhere."""
    with warnings.catch_warnings():
        # Pillow warns of what it can live with.
        warnings.simplefilter("ignore")
        try:
            facts = inspect_image(io.BytesIO(content), max_pixels=PIXELS_MAX)
        except ServiceRefused as refusal:
            assert refusal.code in ("not_an_image", "unsupported_format", "too_many_pixels")
            return
    assert facts.format in ("PNG", "JPEG", "WEBP")
    assert 0 < facts.width * facts.height <= PIXELS_MAX


@fuzzed(400, content=damaged_images())
def test_an_image_is_whole_or_refused(content: bytes) -> None:
    inspect(content)


@fuzzed(150, content=st.binary(max_size=200))
def test_no_image_is_refused(content: bytes) -> None:
    inspect(content)


@fuzzed(
    300,
    name=texts
    | st.lists(st.sampled_from(["..", ".", "a", "", "/", "\\", "\0", ".incoming", "é", "r.png"]), max_size=6).map(
        "/".join
    ),
)
def test_a_name_stays_in_its_folder(name: str) -> None:
    try:
        path = FileStorage(ROOT.as_uri()).path(name)
    except InvalidInput:
        return
    assert path.resolve().is_relative_to(ROOT) and path != ROOT


@fuzzed(200, url=texts | texts.map(lambda text: f"file://{text}") | texts.map(lambda text: f"file:///{text}"))
def test_a_storage_is_a_folder_or_a_setting_to_correct(url: str) -> None:
    with suppress(ConfigError):
        FileStorage(url)
