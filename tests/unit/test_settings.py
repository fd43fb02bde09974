"""Settings: read once, checked together, secrets shown to nobody. Called by pytest."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from smi_workflow.errors import ConfigError
from smi_workflow.settings import Settings, load_settings, without_password

EXAMPLE = Path(__file__).resolve().parents[2] / "config" / "env.example"
REQUIRED = {
    "SMI_SECRET_KEY": "k" * 40,
    "SMI_STRIPE_API_KEY": "sk_test_1",
    "SMI_STRIPE_WEBHOOK_SECRET": "whsec_1",
    "SMI_UPSAMPLER_API_KEY": "up_1",
}

HOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

Load = Callable[..., Settings]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """Load settings from these variables alone, in an empty folder; None takes a required one away."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SMI_{name.upper()}", raising=False)
    monkeypatch.delenv("SMI_ENV_FILE", raising=False)

    def load_with(**variables: str | None) -> Settings:
        for name, value in {**REQUIRED, **variables}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        return load_settings()

    return load_with


def problems(load: Load, **variables: str | None) -> tuple[str, ...]:
    """What is said of bad variables."""
    with pytest.raises(ConfigError) as error:
        load(**variables)
    return error.value.problems


def test_what_is_needed_is_all_that_is_needed(load: Load) -> None:
    settings = load()
    assert settings.database_url == "sqlite:///var/smi.sqlite3"
    assert settings.storage_url == (Path.cwd() / "var" / "files").as_uri()
    assert settings.downloads_url == settings.public_url == "http://127.0.0.1:8000"
    assert settings.success_url == "http://127.0.0.1:8000/jobs/{JOB_ID}?from=checkout"
    assert settings.mail_from == "no-reply@127.0.0.1"
    assert (settings.currency, settings.markup_percentage) == ("usd", Decimal(500))
    assert (settings.payment_timeout_hours, settings.processing_timeout_minutes) == (24, 15)
    assert settings.livemode is False
    assert settings.secret_keys == (b"k" * 40,)


def test_all_problems_are_listed_together_by_name(load: Load) -> None:
    found = problems(
        load,
        SMI_SECRET_KEY=None,
        SMI_STRIPE_API_KEY=None,
        SMI_STRIPE_WEBHOOK_SECRET=" , ",
        SMI_CURRENCY="dollars",
        SMI_PAYMENT_TIMEOUT_HOURS="25",
        SMI_PUBLIC_URL="shop.example",
        SMI_UPSAMPLER_EXTRA_INPUTS="{not json",
        SMI_DATABASE_URL="oracle://db",
        SMI_REFUND_DELAY_MINUTES="-1",
    )
    names = [problem.split(" ", 1)[0] for problem in found]
    assert sorted(names) == [
        "SMI_CURRENCY", "SMI_DATABASE_URL", "SMI_PAYMENT_TIMEOUT_HOURS", "SMI_PUBLIC_URL",
        "SMI_REFUND_DELAY_MINUTES", "SMI_SECRET_KEY", "SMI_STRIPE_API_KEY", "SMI_STRIPE_WEBHOOK_SECRET",
        "SMI_UPSAMPLER_EXTRA_INPUTS",
    ]  # fmt: skip
    assert "SMI_SECRET_KEY is not set" in found


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("SMI_SECRET_KEY", "short", "at least 32 characters"),
        ("SMI_SECRET_KEY", f"{'k' * 40},short", "at least 32 characters"),
        ("SMI_PUBLIC_URL", "http://", "name a host"),
        ("SMI_PUBLIC_URL", "ftp://x", "must start with http"),
        ("SMI_PUBLIC_URL", "http://shop:port", "cannot be read"),
        ("SMI_STRIPE_API_BASE", "https://", "name a host"),
        ("SMI_BROKER_URL", "kafka://x", "must be a redis://"),
        ("SMI_DATABASE_URL", "postgresql://u:p@host:port/db", "cannot be read"),
        ("SMI_DATABASE_URL", "postgresql://u:p[@host/db", "cannot be read"),
        ("SMI_PAYMENT_TIMEOUT_HOURS", "0.5", "0.59 to 24"),
        ("SMI_PAYMENT_TIMEOUT_HOURS", "24.01", "0.59 to 24"),
        ("SMI_PAYMENT_TIMEOUT_HOURS", "nan", "finite"),
        ("SMI_REFUND_DELAY_MINUTES", "inf", "finite"),
        ("SMI_DELAYED_PAYMENT_DAYS", "1e300", "at most 1000000"),
        ("SMI_PROCESSING_TIMEOUT_MINUTES", "0", "greater than 0"),
        ("SMI_TABLE_PREFIX", "wp; DROP", "pattern"),
        ("SMI_UNEXPECTED_PAYMENT", "keep", "'refund' or 'hold'"),
        ("SMI_UPSAMPLER_EXTRA_INPUTS", "[1]", "dictionary"),
        ("SMI_UPSAMPLER_EXTRA_INPUTS", "[" * 100_000, "must be a JSON object"),
        ("SMI_MARKUP_PERCENTAGE", "-1", "greater than or equal to 0"),
        ("SMI_MARKUP_PERCENTAGE", "33.333", "2 decimal places"),
        ("SMI_CREDIT_COST", "0", "greater than 0"),
        ("SMI_PRICE_MINIMUM", "-0.01", "greater than or equal to 0"),
        ("SMI_OUTPUT_PIXELS_MAX", "many", "integer"),
        ("SMI_ADMIN_TOKENS", "t" * 40, "must be name:token"),
        ("SMI_ADMIN_TOKENS", f":{'t' * 40}", "must be name:token"),
        ("SMI_ADMIN_TOKENS", f"jane doe:{'t' * 40}", "must be name:token"),
        ("SMI_ADMIN_TOKENS", "jane:short", "jane's token needs 32"),
        ("SMI_ADMIN_TOKENS", f"jane:{'t' * 20} {'t' * 20}", "jane's token needs 32"),
        ("SMI_ADMIN_TOKENS", f"jane:{'t' * 40},joe:{'t' * 40}", "names one token twice"),
        ("SMI_LIMIT_ORDERS", "many", "must be off, or a number"),
        ("SMI_LIMIT_ORDERS", "0/minute", "must be off, or a number"),
        ("SMI_LIMIT_READS", "5 per minute", "must be off, or a number"),
        ("SMI_LIMIT_EXEMPT", "10.0.0.0/8, shop.example", "shop.example is neither"),
        ("SMI_LIMIT_EXEMPT", "10.0.0.1/8", "10.0.0.1/8 is neither"),
        ("SMI_ORDERS_AT_ONCE", "0", "greater than or equal to 1"),
        ("SMI_TRUSTED_PROXIES", "-1", "greater than or equal to 0"),
        ("SMI_CORS_ORIGINS", "*", "is no origin"),
        ("SMI_CORS_ORIGINS", "https://shop.example/", "is no origin"),
        ("SMI_CORS_ORIGINS", "https://*.example", "is no origin"),
        ("SMI_CORS_ORIGINS", "https://Shop.example", "is no origin"),
        ("SMI_CORS_ORIGINS", "null", "is no origin"),
        ("SMI_HOOK_SECRET", "hush", "whsec_ and base64"),
        ("SMI_HOOK_SECRET", f"{HOOK_SECRET},whsec_c2hvcnQ=", "24 to 64 bytes"),
        ("SMI_HOOK_SECRET", f"whsec_{'x' * 100}", "24 to 64 bytes"),
        ("SMI_HOOK_SECRET", f"whsec_{'x' * 33}", "24 to 64 bytes"),
        ("SMI_HOOK_SECRET", HOOK_SECRET.removeprefix("whsec_"), "24 to 64 bytes"),
        ("SMI_HOOK_SECRET", HOOK_SECRET.replace("9", "!"), "24 to 64 bytes"),
    ],
)
def test_a_bad_value_is_named_with_what_is_wrong(load: Load, name: str, value: str, text: str) -> None:
    (problem,) = problems(load, **{name: value})
    assert problem.startswith(f"{name} ")
    assert text in problem


@pytest.mark.parametrize(
    ("urls", "text"),
    [
        ("example.com/hook", "must start with http"),
        ("https://example.com/hook,http://", "name a host"),
        ("https://example.com/a b", "without spaces"),
        ("https://example.com/hook,https://example.com/hook", "twice"),
    ],
)
def test_receivers_must_be_urls_each_of_its_own(load: Load, urls: str, text: str) -> None:
    (problem,) = problems(load, SMI_HOOK_URLS=urls, SMI_HOOK_SECRET=HOOK_SECRET)
    assert problem.startswith("SMI_HOOK_URLS ") and text in problem


def test_receivers_are_told_nothing_unsigned(load: Load) -> None:
    (problem,) = problems(load, SMI_HOOK_URLS="https://example.com/hook")
    assert problem == "SMI_HOOK_SECRET is needed to sign what SMI_HOOK_URLS are told"
    settings = load(SMI_HOOK_URLS="https://example.com/,http://10.0.0.7/", SMI_HOOK_SECRET=HOOK_SECRET)
    assert settings.hook_addresses == ("https://example.com/", "http://10.0.0.7/")
    assert load(SMI_HOOK_URLS="").hook_addresses == ()


def test_lists_are_split_and_empty_means_unset(load: Load) -> None:
    settings = load(
        SMI_SECRET_KEY=f"{'a' * 32}, {'b' * 32},",
        SMI_RESULT_HOSTS="*.upsampler.com, cdn.example",
        SMI_CURRENCY="",
        SMI_UPSAMPLER_EXTRA_INPUTS='{"detail": 8}',
    )
    assert settings.secret_keys == (b"a" * 32, b"b" * 32)
    assert settings.result_hosts == ("*.upsampler.com", "cdn.example")
    assert settings.currency == "usd"
    assert settings.upsampler_extra_inputs == {"detail": 8}


@pytest.mark.parametrize(("key", "livemode"), [("sk_live_1", True), ("rk_live_1", True), ("sk_test_1", False)])
def test_the_key_says_which_mode(load: Load, key: str, livemode: bool) -> None:
    assert load(SMI_STRIPE_API_KEY=key).livemode is livemode


def test_the_mail_sender_of_an_ipv6_site_can_be_written(load: Load) -> None:
    assert load(SMI_PUBLIC_URL="http://[::1]:8000").mail_from == "no-reply@localhost"


SECRETS = {
    "SMI_SECRET_KEY": "HUSH" * 10,
    "SMI_STRIPE_API_KEY": "sk_test_HUSH",
    "SMI_STRIPE_WEBHOOK_SECRET": "whsec_HUSH",
    "SMI_UPSAMPLER_API_KEY": "HUSH",
    "SMI_SMTP_URL": "smtp://user:HUSH@mail.example",
    "SMI_ADMIN_TOKENS": "jane:" + "HUSH" * 10,
    "SMI_HOOK_URLS": "https://shop:HUSH@example.com/HUSH?token=HUSH",
    "SMI_HOOK_SECRET": "whsec_" + "HUSH" * 10,
    "SMI_ADMIN_PASSWORDS": "jane:HUSH",
    "SMI_DATABASE_URL": "postgresql://shop:HUSH@db.example/shop",
    "SMI_BROKER_URL": "redis://:HUSH@redis.example:6379/0",
}


def test_secrets_are_in_no_repr(load: Load) -> None:
    settings = load(**SECRETS)
    for text in (repr(settings), str(settings), f"{settings}", repr({"settings": settings})):
        assert "HUSH" not in text
        assert "postgresql://shop:***@db.example/shop" in text
        assert "redis://:***@redis.example:6379/0" in text
    # They are hidden, not lost.
    assert settings.database_url == SECRETS["SMI_DATABASE_URL"]


@pytest.mark.parametrize(
    "bad",
    [
        {"SMI_SECRET_KEY": "HUSH"},
        {"SMI_ADMIN_TOKENS": "HUSH" * 10},
        {"SMI_ADMIN_TOKENS": "jane:HUSH"},
        {"SMI_ADMIN_TOKENS": "jane:" + "HUSH" * 10 + ",joe:" + "HUSH" * 10},
        {"SMI_DATABASE_URL": "oracle://shop:HUSH@db.example"},
        {"SMI_DATABASE_URL": "postgresql://shop:HUSH[@db.example"},
        {"SMI_DATABASE_URL": "postgresql://shop:HU/SH@db.example:HUSH"},
        {"SMI_BROKER_URL": "kafka://:HUSH@redis.example"},
        {"SMI_BROKER_URL": "redis://:x@redis.example:HUSH"},
        {"SMI_PUBLIC_URL": "ftp://user:HUSH@shop.example"},
        {"SMI_STRIPE_API_BASE": "user:HUSH@stripe.example"},
        {"SMI_UPSAMPLER_EXTRA_INPUTS": "HUSH"},
        {"SMI_HOOK_URLS": "example.com/HUSH"},
        {"SMI_HOOK_SECRET": "HUSH"},
    ],
)
def test_secrets_are_in_no_error(load: Load, bad: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(**{**SECRETS, **bad})
    assert "HUSH" not in str(error.value)
    assert error.value.__suppress_context__


def test_validation_errors_repeat_no_input() -> None:
    with pytest.raises(ValueError, match="secret_key") as error:
        Settings(secret_key="HUSH", _env_file=None)  # type: ignore[call-arg, arg-type]
    assert "HUSH" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///var/smi.sqlite3", "sqlite:///var/smi.sqlite3"),
        ("postgresql://db.example/shop", "postgresql://db.example/shop"),
        ("postgresql://shop@db.example/shop", "postgresql://shop@db.example/shop"),
        ("postgresql://shop:p@ss:w/rd@db.example/shop", "postgresql://shop:***@db.example/shop"),
        (
            "postgresql://db.example/shop?user=x&password=hush&x=1",
            "postgresql://db.example/shop?user=x&password=***&x=1",
        ),
        ("redis://:hush@h:6379", "redis://:***@h:6379"),
        ("http://127.0.0.1:8000/thanks", "http://127.0.0.1:8000/thanks"),
    ],
)
def test_passwords_are_hidden_in_urls(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_an_env_file_is_read_and_the_environment_wins(load: Load, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SMI_CURRENCY=eur\nSMI_POLL_SECONDS=7\n# SMI_TABLE_PREFIX=x_\n")
    settings = load(SMI_POLL_SECONDS="9")
    assert (settings.currency, settings.poll_seconds, settings.table_prefix) == ("eur", 9, "wp_")


def test_another_env_file_can_be_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SMI_CURRENCY=eur\n")
    (tmp_path / "other.env").write_text("SMI_CURRENCY=gbp\n")
    assert load(SMI_ENV_FILE=str(tmp_path / "other.env")).currency == "gbp"
    assert load(SMI_ENV_FILE="/dev/null").currency == "usd"
    with pytest.raises(ConfigError, match="which does not exist"):
        load(SMI_ENV_FILE=str(tmp_path / "nowhere.env"))


def test_an_env_file_that_is_no_text_is_said_so(load: Load, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"SMI_CURRENCY=\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"\.env cannot be read"):
        load()


def test_settings_are_frozen(load: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().currency = "eur"


def example() -> dict[str, tuple[bool, str]]:
    """Variable → (is it commented out, its value), as config/env.example has them."""
    lines = re.findall(r"^(#?)(SMI_[A-Z_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE)
    found = {name: (bool(comment), value) for comment, name, value in lines}
    assert len(found) == len(lines), "listed twice"
    return found


def test_the_example_lists_every_setting_and_nothing_else() -> None:
    assert set(example()) == {f"SMI_{name.upper()}" for name in Settings.model_fields}


def test_the_example_shows_each_default_and_its_meaning(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    text = EXAMPLE.read_text()
    for name, field in Settings.model_fields.items():
        commented, value = example()[f"SMI_{name.upper()}"]
        assert field.description and f"# {field.description}\n" in text, name
        assert commented is not field.is_required(), name
        if field.is_required() or value == "":
            assert field.is_required() or field.get_default() in ("", ()), name
            continue
        loaded: Any = getattr(load(**{f"SMI_{name.upper()}": value}), name)
        assert loaded == field.get_default(call_default_factory=True), name


def test_the_example_as_it_stands_asks_for_what_is_required(load: Load) -> None:
    nothing = dict.fromkeys(REQUIRED)
    found = problems(load, SMI_ENV_FILE=str(EXAMPLE), **nothing)
    assert sorted(problem.split(" ")[0] for problem in found) == sorted(REQUIRED)
