"""Tokens and signatures: always the same, never each other's, and junk opens nothing. Called by pytest."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smi_workflow.jobs.tokens import (
    TOKEN_PATTERN,
    download_token,
    is_signed_until,
    sign,
    sign_until,
    signature_is_ours,
    token_hash,
    token_that_opens,
)

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@given(
    st.binary(min_size=32, max_size=64), st.text(st.characters(codec="utf-8"), max_size=40), st.integers(0, 10**6)
)
def test_a_token_is_64_letters_and_digits_and_always_the_same(key: bytes, job_id: str, generation: int) -> None:
    token = download_token(key, job_id, generation)
    assert len(token) == 64
    assert token.isascii() and token.isalnum()
    assert TOKEN_PATTERN.fullmatch(token)
    assert download_token(key, job_id, generation) == token


def test_known_tokens_stay_what_they_are() -> None:
    # Mails were sent with links like these: whoever changes how they are made kills them all.
    assert (
        download_token(b"k" * 32, "job-1", 1) == "azag995OtLR93Bd4O1fBfXQOLC4VtkMX0amrGxKlq8NQarxQGbqTly7nXmgzCxoZ"
    )
    assert token_hash("a" * 64) == "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb"


def test_every_part_makes_another_token() -> None:
    tokens = {
        download_token(key, job_id, generation)
        for key in (OLD, NEW)
        for job_id in ("a", "b", "a1", "")
        for generation in (1, 2, 11)
    }
    assert len(tokens) == 2 * 4 * 3


def test_parts_cannot_run_into_each_other() -> None:
    assert sign(OLD, "source", "ab", "c") != sign(OLD, "source", "a", "bc")
    assert sign(OLD, "source", "abc") != sign(OLD, "sourceabc")
    assert sign(OLD, "source", "a", "") != sign(OLD, "source", "a")


def test_characters_are_spread_evenly() -> None:
    text = "".join(download_token(OLD, f"job-{number}", 1) for number in range(500))
    counts = [text.count(character) for character in set(text)]
    assert len(counts) == 62
    # 32,000 draws of 62 characters: 516 each, and six standard deviations are 136.
    assert max(abs(count - 516) for count in counts) < 136


def test_a_stored_hash_opens_with_any_key_that_is_still_there() -> None:
    made_by_old = token_hash(download_token(OLD, "job-1", 2))
    assert token_that_opens([NEW, OLD], "job-1", 2, made_by_old) == download_token(OLD, "job-1", 2)
    assert token_that_opens([NEW], "job-1", 2, made_by_old) is None
    assert token_that_opens([NEW, OLD], "job-1", 3, made_by_old) is None
    assert token_that_opens([NEW, OLD], "job-2", 2, made_by_old) is None
    assert token_that_opens([NEW, OLD], "job-1", 2, "") is None
    assert token_that_opens([], "job-1", 2, made_by_old) is None


def test_a_signature_holds_for_its_purpose_and_parts_alone() -> None:
    made = sign(OLD, "upsampler", "effect-1")
    assert signature_is_ours([NEW, OLD], made, "upsampler", "effect-1")
    assert not signature_is_ours([NEW, OLD], made, "source", "effect-1")
    assert not signature_is_ours([NEW, OLD], made, "upsampler", "effect-2")
    assert not signature_is_ours([NEW, OTHER], made, "upsampler", "effect-1")
    assert not signature_is_ours([], made, "upsampler", "effect-1")


JUNK = [
    "",
    " ",
    "0",
    "-",
    "--",
    "é" * 64,
    "\x00",
    "\ud800",
    "0" * 100_000,
    "٣" * 64,
    "1-",
    "-1",
    "1e9-aa",
    "+1-aa",
]


@pytest.mark.parametrize("junk", JUNK)
def test_junk_is_not_ours(junk: str) -> None:
    assert not signature_is_ours([OLD, NEW], junk, "source", "job-1")
    assert is_signed_until([OLD, NEW], junk, NOW, "source", "job-1") is None


@given(st.text(max_size=80))
def test_no_text_is_ours_by_chance(text: str) -> None:
    assert not signature_is_ours([OLD], text, "source", "job-1")
    assert is_signed_until([OLD], text, NOW, "source", "job-1") is None


def test_a_signature_with_an_end() -> None:
    stamped = sign_until(OLD, "source", NOW + timedelta(hours=1), "job-1")

    def judge(now: datetime, text: str = stamped, job_id: str = "job-1") -> bool | None:
        return is_signed_until([NEW, OLD], text, now, "source", job_id)

    assert judge(NOW) is True
    assert judge(NOW + timedelta(minutes=59, seconds=59)) is True
    assert judge(NOW + timedelta(hours=1)) is False
    assert judge(NOW + timedelta(days=3650)) is False
    assert judge(NOW, job_id="job-2") is None
    end, _, signature = stamped.partition("-")
    assert judge(NOW, f"{int(end) + 3600}-{signature}") is None
    assert judge(NOW, f"0{end}-{signature}") is None
    assert judge(NOW, f"{end}-{signature.upper()}") is None
    assert judge(NOW, f"{stamped} ") is None
    assert is_signed_until([OLD], stamped, NOW, "download", "job-1") is None
