"""Owns the settings: environment variables `SMI_*` (and `.env`), read once, checked together, frozen.

Called by app.py, the command line and the processes; everything else gets a Settings as an argument.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from smi_workflow.errors import ConfigError

# Stripe takes 30 minutes to 24 hours; five minutes' margin on both ends for clocks and slow requests.
PAYMENT_TIMEOUT_HOURS_MIN = 35 / 60
PAYMENT_TIMEOUT_HOURS_MAX = 24.0
STRIPE_EXPIRY_MARGIN_SECONDS = 300
# More would end beyond the calendar.
DURATION_MAX = 1_000_000
# Greedy up to the last @: rather too much hidden than too little.
_PASSWORD = re.compile(r"(://[^:/@\s]*:).*@|([?&](?:password|passwd|sslpassword)=)[^&#]*")

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
# What RFC 6750 lets a bearer token be.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{32,255}=*", re.ASCII)
_RATE = re.compile(r"off|[1-9][0-9]{0,8}/(second|minute|hour|day)", re.ASCII)
_ORIGIN = re.compile(r"https?://[a-z0-9.\[\]:-]+", re.ASCII)
# 24 to 64 bytes in base64, its padding with or without; a single character of four would decode to nothing.
_HOOK_SECRET = re.compile(r"whsec_([A-Za-z0-9+/]{4}){8,21}([A-Za-z0-9+/]{2,3})?={0,2}", re.ASCII)

Names = Annotated[tuple[str, ...], NoDecode]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode]
Amount = Annotated[Decimal, Field(ge=0, le=1_000_000)]
NonEmptySecret = Annotated[SecretStr, Field(min_length=1)]


class Settings(BaseSettings):
    """Every setting of the system. A field `public_url` is the variable `SMI_PUBLIC_URL`."""

    model_config = SettingsConfigDict(
        env_prefix="SMI_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    # Where things are kept.
    var_dir: Path = Field(Path("var"), description="Folder for the embedded defaults: database, broker, files.")
    database_url: str = Field("", description="sqlite:///path, postgresql://…, mysql://…; default SQLite in var.")
    table_prefix: str = Field("wp_", pattern=r"^[A-Za-z0-9_]{0,32}$", description="Prefix of every table.")
    wordpress_tables: bool = Field(
        False,
        description="True where the WordPress tables exist: post_id and attachment_id become foreign keys.",
    )
    broker_url: str = Field("", description="redis://, rediss://, unix://, amqp://; default an embedded server.")
    storage_url: str = Field("", description="file:///path; default the folder files in var.")

    # Who we are.
    secret_key: Secrets = Field(description="Signs links and tokens; several while rolling, newest first.")
    public_url: str = Field("http://127.0.0.1:8000", description="Where buyers and providers reach us.")
    downloads_url: str = Field("", description="Where the downloads process is reached; default SMI_PUBLIC_URL.")
    success_url: str = Field("", description="Where Stripe sends the buyer after paying; default a page of ours.")
    cancel_url: str = Field("", description="Where Stripe sends the buyer who gave up; default a page of ours.")
    trusted_proxies: int = Field(
        0, ge=0, le=10, description="How many proxies of ours stand before the web; 0 believes no X-Forwarded-For."
    )
    cors_origins: Names = Field(
        (), description="Origins whose pages may call the public API, e.g. https://shop.example; no wildcards."
    )

    # Stripe.
    stripe_api_key: NonEmptySecret = Field(description="Secret key; its prefix tells test from live mode.")
    stripe_webhook_secret: Secrets = Field(description="Endpoint secrets, comma-separated while rolling.")
    stripe_api_base: str = Field("https://api.stripe.com", description="Stripe's API.")

    # Upsampler.
    upsampler_api_key: NonEmptySecret = Field(description="Bearer key of the Upsampler account.")
    upsampler_api_base: str = Field("https://upsampler.com/api/v1", description="Upsampler's API.")
    upsampler_image_type: Literal["realism", "anime", "universal"] = Field(
        "universal", description="Upsampler's inputImageType."
    )
    upsampler_extra_inputs: Annotated[dict[str, Any], NoDecode] = Field(
        default_factory=dict, description='JSON object merged into Upsampler\'s input, e.g. {"detail": 8}.'
    )
    result_hosts: Names = Field(
        ("*",), description="Hosts a result may come from, e.g. *.upsampler.com; * is any public host."
    )
    allow_private_addresses: bool = Field(
        False,
        description="True lets image URLs point into private networks and use http; for development only.",
    )

    # Mail.
    smtp_url: SecretStr = Field(
        SecretStr("smtp://127.0.0.1:25"), description="smtp://user:password@host:port or smtps://…"
    )
    mail_from: str = Field("", description="Sender address; default no-reply@ the public URL's host.")
    admin_email: str = Field("", description="Who is told when a person is needed; empty: nobody.")

    # Who may act (read by the admin interfaces).
    admin_tokens: Secrets = Field(
        (), description="name:token, comma-separated, for the API; a name may have two tokens while rolling."
    )
    admin_passwords: Secrets = Field((), description="name:hash, comma-separated, for the page.")

    # Who is told by webhook.
    hook_urls: Secrets = Field((), description="Told of each sale's course by signed webhooks; comma-separated.")
    hook_secret: Secrets = Field(
        (),
        validate_default=True,
        description="Signs them: whsec_ and base64 of 24 to 64 bytes; several while rolling, each signs.",
    )

    # Money.
    currency: str = Field("usd", pattern=r"^[a-z]{3}$", description="Three letters, as Stripe writes them.")
    credit_cost: Amount = Field(Decimal("0.04"), gt=0, description="Of one Upsampler credit, in SMI_CURRENCY.")
    markup_percentage: Amount = Field(Decimal(500), decimal_places=2, description="On top of the cost.")
    price_minimum: Amount = Field(Decimal(0), description="In SMI_CURRENCY; Stripe's own minimum counts anyway.")
    unexpected_payment: Literal["refund", "hold"] = Field(
        "refund", description="What happens to money that fits no sale: sent back, or held for a person."
    )

    # Deadlines.
    payment_timeout_hours: float = Field(24.0, description="How long a buyer may take to pay.")
    delayed_payment_days: float = Field(14.0, gt=0, description="How long a bank debit may take to settle.")
    pending_timeout_hours: float = Field(24.0, gt=0, description="How long a paid job may wait for Upsampler.")
    processing_timeout_minutes: float = Field(15.0, gt=0, description="How long an upscale may take.")
    refund_delay_minutes: float = Field(30.0, ge=0, description="From failure to refund: time for a retry.")
    download_expiry_hours: float = Field(24.0, gt=0, description="How long a download link works.")
    reconcile_minutes: float = Field(
        60.0, ge=1, description="How often Stripe and Upsampler are asked for what we missed."
    )
    poll_seconds: float = Field(30.0, gt=0, description="First wait before asking Upsampler; later ones grow.")
    lease_seconds: float = Field(60.0, ge=2, description="A worker's claim on an effect, renewed while it works.")
    sweep_seconds: float = Field(0.5, gt=0, description="How often the relay looks for what is due.")
    ring_again_seconds: float = Field(5.0, gt=0, description="When the relay rings again for one effect.")

    # Limits.
    output_pixels_max: int = Field(64_000_000, gt=0, description="Largest result that is sold.")
    source_bytes_max: int = Field(32 * 1024 * 1024, gt=0, description="Largest source image taken in.")
    result_bytes_max: int = Field(512 * 1024 * 1024, gt=0, description="Largest result stored.")
    orders_at_once: int = Field(
        4, ge=1, description="Orders that one web process takes in at once: fewer than WEB_THREADS, for webhooks."
    )
    limit_orders: str = Field("30/minute", description="Orders from one address; off, or a number a unit of time.")
    limit_reads: str = Field("300/minute", description="All else from one address: prices, progress, files.")
    limit_exempt: Names = Field(
        ("127.0.0.0/8", "::1"),
        description="Addresses and networks without limits: the shop's own servers, which order for many buyers.",
    )
    result_timeout_seconds: float = Field(300.0, gt=0, description="Total time for fetching a result.")
    fetch_timeout_seconds: float = Field(20.0, gt=0, description="Total time for fetching a source image.")

    @field_validator(
        "secret_key",
        "stripe_webhook_secret",
        "admin_tokens",
        "admin_passwords",
        "hook_urls",
        "hook_secret",
        "result_hosts",
        "limit_exempt",
        "cors_origins",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("secret_key", "stripe_webhook_secret")
    @classmethod
    def _at_least_one(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not value:
            raise ValueError("needs at least one value")
        return value

    @field_validator("admin_tokens")
    @classmethod
    def _named_tokens(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        tokens = set()
        for pair in value:
            name, colon, token = pair.get_secret_value().partition(":")
            # Without a colon the name may be the token: it is not repeated.
            if not colon or not _NAME.fullmatch(name):
                raise ValueError("must be name:token, the name of at most 64 letters, digits, dots, - and _")
            if not _TOKEN.fullmatch(token):
                raise ValueError(f"{name}'s token needs 32 letters or more, as from openssl rand -hex 32")
            tokens.add(token)
        if len(tokens) != len(value):
            raise ValueError("names one token twice, so nobody could tell whose it is")
        return value

    @field_validator("limit_orders", "limit_reads")
    @classmethod
    def _a_rate(cls, value: str) -> str:
        if not _RATE.fullmatch(value):
            raise ValueError("must be off, or a number per second, minute, hour or day, e.g. 30/minute")
        return value

    @field_validator("limit_exempt")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            try:
                ip_network(network)
            except ValueError:
                raise ValueError(f"{network} is neither an address nor a network, e.g. 192.0.2.0/24") from None
        return value

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin) or not _host(origin):
                raise ValueError(f"{origin} is no origin, e.g. https://shop.example, lower case, without a path")
        return value

    @field_validator("secret_key")
    @classmethod
    def _long_enough(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value()) < 32 for key in value):
            raise ValueError("each key needs at least 32 characters; make one with: openssl rand -hex 32")
        return value

    @field_validator(
        "public_url", "downloads_url", "success_url", "cancel_url", "stripe_api_base", "upsampler_api_base"
    )
    @classmethod
    def _http_url(cls, value: str) -> str:
        if value and not (value.startswith(("http://", "https://")) and _host(value)):
            raise ValueError("must start with http:// or https://, and name a host")
        return value.rstrip("/")

    @field_validator("hook_urls")
    @classmethod
    def _receivers(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        urls = [url.get_secret_value() for url in value]
        for url in urls:
            cls._http_url(url)
            if any(char <= " " for char in url):
                raise ValueError("must be URLs without spaces")
        if len(set(urls)) < len(urls):
            raise ValueError("names a URL twice")
        return value

    @field_validator("hook_secret")
    @classmethod
    def _hook_secret(cls, value: tuple[SecretStr, ...], others: ValidationInfo) -> tuple[SecretStr, ...]:
        if not value and others.data.get("hook_urls"):
            raise ValueError("is needed to sign what SMI_HOOK_URLS are told")
        if not all(_HOOK_SECRET.fullmatch(key.get_secret_value()) for key in value):
            raise ValueError('needs whsec_ and base64 of 24 to 64 bytes: echo "whsec_$(openssl rand -base64 32)"')
        return value

    @field_validator("public_url")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value:
            raise ValueError("must not be empty")
        return value

    @field_validator("database_url")
    @classmethod
    def _database_scheme(cls, value: str) -> str:
        known = ("sqlite", "postgresql", "postgres", "mysql", "mariadb")
        if value and value.split("://")[0].split("+")[0] not in known:
            raise ValueError("must be a sqlite://, postgresql:// or mysql:// URL")
        _host(value)
        return value

    @field_validator("broker_url")
    @classmethod
    def _broker_scheme(cls, value: str) -> str:
        if value and not value.startswith(("redis://", "rediss://", "unix://", "amqp://", "amqps://")):
            raise ValueError("must be a redis://, rediss://, unix:// or amqp:// URL")
        _host(value)
        return value

    @field_validator("upsampler_extra_inputs", mode="before")
    @classmethod
    def _json_object(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError("must be a JSON object") from None
        return value

    @field_validator(
        "delayed_payment_days", "pending_timeout_hours", "processing_timeout_minutes", "refund_delay_minutes",
        "download_expiry_hours", "reconcile_minutes", "poll_seconds", "lease_seconds", "sweep_seconds",
        "ring_again_seconds", "result_timeout_seconds", "fetch_timeout_seconds",
    )  # fmt: skip
    @classmethod
    def _within_the_calendar(cls, value: float) -> float:
        if value > DURATION_MAX:
            raise ValueError(f"must be at most {DURATION_MAX}")
        return value

    @field_validator("payment_timeout_hours")
    @classmethod
    def _within_stripe_limits(cls, value: float) -> float:
        if not PAYMENT_TIMEOUT_HOURS_MIN <= value <= PAYMENT_TIMEOUT_HOURS_MAX:
            raise ValueError("Stripe keeps a checkout open for 0.5 to 24 hours; with margin: 0.59 to 24")
        return value

    @model_validator(mode="after")
    def _fill_in(self) -> Self:
        host = _host(self.public_url) or ""
        host = "localhost" if ":" in host else host
        defaults = {
            "database_url": f"sqlite:///{self.var_dir / 'smi.sqlite3'}",
            "storage_url": (self.var_dir / "files").absolute().as_uri(),
            "downloads_url": self.public_url,
            "success_url": f"{self.public_url}/jobs/{{JOB_ID}}?from=checkout",
            "cancel_url": f"{self.public_url}/cancelled?job={{JOB_ID}}",
            "mail_from": f"no-reply@{host}",
        }
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, without_password(value) if isinstance(value, str) else value

    @property
    def livemode(self) -> bool:
        """True when the Stripe key moves real money."""
        return "_live_" in self.stripe_api_key.get_secret_value()

    @property
    def hook_addresses(self) -> tuple[str, ...]:
        """Where receivers of hooks are told; their URLs may carry secrets."""
        return tuple(url.get_secret_value() for url in self.hook_urls)

    @property
    def secret_keys(self) -> tuple[bytes, ...]:
        """The signing keys, newest first."""
        return tuple(key.get_secret_value().encode() for key in self.secret_key)


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    return _PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", url)


def _host(url: str) -> str | None:
    """The host that a URL names. Raises ValueError for one that cannot be read; its text repeats no password."""
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        return parts.hostname if parts.port != 0 else None
    except ValueError:
        raise ValueError("cannot be read; percent-encode what is special in user and password") from None


def load_settings(**overrides: Any) -> Settings:
    """Read the environment and `.env` (or the file that SMI_ENV_FILE names) once.

    Args:
        overrides: fields set by the caller (tests, the demo) instead of the environment.
    Raises:
        ConfigError: every missing or bad variable, by name, together.
    """
    named = os.environ.get("SMI_ENV_FILE")
    if named and not Path(named).exists():
        raise ConfigError(f"SMI_ENV_FILE names {named}, which does not exist")
    try:
        # The one place that reads the environment; pydantic-settings takes the file's name per call.
        return Settings(_env_file=named or ".env", **overrides)  # type: ignore[call-arg]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{named or '.env'} cannot be read: {type(error).__name__}") from None
    except ValidationError as error:
        problems = []
        for item in error.errors():
            name = "SMI_" + str(item["loc"][0]).upper() if item["loc"] else "settings"
            problem = "is not set" if item["type"] == "missing" else item["msg"].removeprefix("Value error, ")
            problems.append(f"{name} {problem}")
        raise ConfigError("These settings need attention (see config/env.example):", problems) from None
