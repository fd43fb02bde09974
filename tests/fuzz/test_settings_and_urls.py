"""The environment, and the URLs in it, as far as every client that is made of them. Called by pytest, atheris."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st

from smi_workflow.app import reach_outside
from smi_workflow.engine.database import open_database
from smi_workflow.errors import ConfigError
from smi_workflow.integrations.broker import make_broker
from smi_workflow.settings import Settings, load_settings
from tests.fuzz.fuzzed import fuzzed
from tests.fuzz.made_up import texts

GOOD = {
    "SMI_ENV_FILE": "/dev/null", "SMI_SECRET_KEY": "k" * 40, "SMI_STRIPE_API_KEY": "sk_test_x",
    "SMI_STRIPE_WEBHOOK_SECRET": "whsec_x", "SMI_UPSAMPLER_API_KEY": "up",
}  # fmt: skip
NAMES = sorted(f"SMI_{name.upper()}" for name in Settings.model_fields)
# What the system keeps in a variable: no NUL, and bytes that are no text as halves of surrogate pairs.
printable = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
urls = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(
        [
            "sqlite",
            "postgresql",
            "mysql",
            "mariadb",
            "redis",
            "rediss",
            "unix",
            "amqp",
            "amqps",
            "file",
            "http",
            "https",
            "smtp",
            "smtps",
        ]
    ),
    st.sampled_from(
        ["", "/", "user:p%40w@", "user:p@w@", "[::1]", "[::", "host:1", "host:0", "host:99999", "host:x"]
    )
    | printable,
    st.sampled_from(["", "/", "/db", "//db", "/%2F", "/0", "/x"]) | printable,
    st.sampled_from(["", "?", "?a", "?port=x", "?ssl=1", "?connect_timeout=x", "?connect_timeout=10", "#f"]),
)
values = (
    printable | urls | st.sampled_from(["0", "-1", "1e999", "nan", "true", "{}", "[", "[" * 3000, ",", "a:b,c"])
)


@fuzzed(300, variables=st.dictionaries(st.sampled_from(NAMES), values, max_size=5))
def test_every_variable_is_good_or_named(variables: dict[str, str]) -> None:
    with patch.dict(os.environ, {**GOOD, **variables}, clear=True):
        try:
            settings = load_settings()
        except ConfigError as error:
            assert all(problem.startswith(("SMI_", "settings")) for problem in error.problems)
            return
    assert len(settings.secret_keys) >= 1


@fuzzed(300, field=st.sampled_from(["database_url", "broker_url", "storage_url", "smtp_url", "stripe_api_base",
                                    "upsampler_api_base", "mail_from", "upsampler_api_key", "stripe_api_key"]),
        value=urls | printable)  # fmt: skip
def test_what_settings_let_through_makes_a_client_or_a_setting_to_correct(field: str, value: str) -> None:
    given: dict[str, Any] = {
        "secret_key": "k" * 40, "stripe_api_key": "sk_test_x", "stripe_webhook_secret": "whsec_x",
        "upsampler_api_key": "up", "database_url": "sqlite:///:memory:", "storage_url": "file:///srv/files",
    }  # fmt: skip
    with suppress(ValueError):
        settings = Settings(**{**given, field: value})
        with suppress(ConfigError):
            make(settings, field)


def make(settings: Settings, field: str) -> None:
    """Whatever is made of this setting; nothing connects yet."""
    if field == "database_url":
        if not settings.database_url.startswith("sqlite"):
            # A file's folder is made at once, wherever it says.
            open_database(settings.database_url)
    elif field == "broker_url":
        if settings.broker_url:
            make_broker(settings.broker_url).close()
    else:
        reach_outside(settings).stripe.close()


@fuzzed(100, url=texts | urls)
def test_a_database_is_one_or_a_setting_to_correct(url: str) -> None:
    with suppress(ConfigError):
        if not url.startswith("sqlite"):
            open_database(url)
