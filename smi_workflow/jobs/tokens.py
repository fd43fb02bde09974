"""Owns every signature and token of ours: download tokens, callback and source links.

Called by jobs/, effects/ and web/.

All are HMACs under the secret key, so that any link can be written again and none can be guessed; checks are
constant-time and accept every key while keys are rolled.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import string
from collections.abc import Iterable
from datetime import datetime

ALPHABET = string.digits + string.ascii_letters
TOKEN_LENGTH = 64
TOKEN_PATTERN = re.compile(r"[A-Za-z0-9]{64}")


def download_token(key: bytes, job_id: str, generation: int) -> str:
    """The token of one job and one generation: 64 characters of [A-Za-z0-9], the same each time."""
    number = int.from_bytes(_mac(key, "download", job_id, str(generation), digest="sha512"))
    characters = []
    for _ in range(TOKEN_LENGTH):
        number, index = divmod(number, len(ALPHABET))
        characters.append(ALPHABET[index])
    return "".join(characters)


def token_hash(token: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def token_that_opens(keys: Iterable[bytes], job_id: str, generation: int, stored_hash: str) -> str | None:
    """The token behind a stored hash, whichever of our keys made it; None when none of them did."""
    for key in keys:
        token = download_token(key, job_id, generation)
        if hmac.compare_digest(token_hash(token), stored_hash):
            return token
    return None


def sign(key: bytes, purpose: str, *parts: str) -> str:
    """A URL-safe signature over a purpose and its parts."""
    return _mac(key, purpose, *parts).hex()


def signature_is_ours(keys: Iterable[bytes], signature: str, purpose: str, *parts: str) -> bool:
    """Whether one of our keys made this signature."""
    given = signature.encode("utf-8", "surrogatepass")
    # Every key is tried, whatever the first says: the time taken tells nothing.
    verdicts = [hmac.compare_digest(given, sign(key, purpose, *parts).encode()) for key in keys]
    return any(verdicts)


def sign_until(key: bytes, purpose: str, expires_at: datetime, *parts: str) -> str:
    """A signature that carries its own end: `<unix time>-<signature>`."""
    end = str(int(expires_at.timestamp()))
    return f"{end}-{sign(key, purpose, end, *parts)}"


def is_signed_until(keys: Iterable[bytes], stamped: str, now: datetime, purpose: str, *parts: str) -> bool | None:
    """True: ours and still good. False: ours, but over. None: not ours."""
    end, _, signature = stamped.partition("-")
    if not end.isascii() or not end.isdigit() or len(end) > 12:
        return None
    if not signature_is_ours(keys, signature, purpose, end, *parts):
        return None
    return now.timestamp() < int(end)


def _mac(key: bytes, *parts: str, digest: str = "sha256") -> bytes:
    # Length-prefixed: no two lists of parts make the same message.
    message = b"".join(len(part.encode()).to_bytes(4) + part.encode() for part in parts)
    return hmac.new(key, message, digest).digest()
