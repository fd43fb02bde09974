"""What a URL, an address and a Retry-After are taken for, before any I/O."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smi_workflow.errors import ServiceRefused
from smi_workflow.integrations.fetching import FetchPolicy, check_url, is_public, retry_after_seconds

PUBLIC = FetchPolicy(allow_private=False, max_bytes=1000, total_timeout_seconds=1)
PRIVATE = replace(PUBLIC, allow_private=True)

NASTY = [
    # Schemes.
    "", " ", "/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd", "ftp://example.com/a.png",
    "gopher://example.com/", "data:image/png;base64,AAAA", "javascript:alert(1)", "httpx://example.com/",
    "http://example.com/a.png", "HTTP://EXAMPLE.COM/", "//example.com/", "example.com/a.png",
    "https:/example.com/", "https:example.com", "https://", "https:///a.png", "https://?a", "https://#a",
    # Credentials, and hosts hidden behind them.
    "https://user@example.com/", "https://user:secret@example.com/", "https://:@example.com/",
    "https://@example.com/", "https://example.com@127.0.0.1/", "https://example.com:443@10.0.0.1/",
    "https://example.com%40127.0.0.1/",
    # Parsers that disagree.
    "https://example.com\\@127.0.0.1/", "https:\\\\example.com/", "https://127.0.0.1\\.example.com/",
    "https://exa mple.com/", "https://example.com/\r\nHost: inside", "https://example.com\t/", "\nhttps://a.com/",
    "https://example.com\x00.inside/", "https://example.com:99999/", "https://example.com:port/",
    "https://[::1/", "https://]/", "https://*.example.com/", "https://.example.com/",
    "https://exa_mple..com/", "https://" + "a" * 64 + ".com/", "https://" + "a." * 130 + "com/",
    "https://example.com/" + "a" * 9000,
    # IPv4, plainly written.
    "https://127.0.0.1/", "https://127.0.0.1:8443/", "https://127.255.255.254/", "https://10.1.2.3/",
    "https://172.16.0.1/", "https://172.31.255.255/", "https://192.168.1.1/", "https://169.254.169.254/latest",
    "https://100.64.0.1/", "https://100.127.255.255/", "https://0.0.0.0/", "https://0.1.2.3/",
    "https://224.0.0.1/", "https://239.255.255.250/", "https://240.0.0.1/", "https://255.255.255.255/",
    "https://192.0.0.8/", "https://192.0.2.1/", "https://192.88.99.1/", "https://198.18.0.1/",
    "https://198.51.100.7/", "https://203.0.113.9/", "https://127.0.0.1./",
    # IPv4, otherwise written: even when public.
    "https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/", "https://0177.0.0.1/", "https://127.1/",
    "https://127.0.1/", "https://017700000001/", "https://0x7F.1/", "https://134744072/", "https://8.8.2056/",
    "https://1.2.3.4.5/", "https://256.256.256.256/", "https://example.123/", "https://0x/",
    "https://１２７.０.０.１/", "https://127。0。0。1/", "https://①②⑦.0.0.1/", "https://%31%32%37.0.0.1/",  # noqa: RUF001 - fullwidth on purpose
    # IPv6.
    "https://[::1]/", "https://[::]/", "https://[fe80::1]/", "https://[fe80::1%25eth0]/", "https://[fc00::1]/",
    "https://[fd12:3456::1]/", "https://[fec0::1]/", "https://[ff02::1]/", "https://[2001:db8::1]/",
    "https://[3fff::1]/", "https://[2001::1]/", "https://[100::1]/", "https://[::127.0.0.1]/",
    "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[0:0:0:0:0:ffff:10.0.0.1]/",
    "https://[2002:7f00:1::]/", "https://[2002:c0a8:101::1]/", "https://[64:ff9b::10.0.0.1]/",
    "https://[64:ff9b::a9fe:a9fe]/", "https://[64:ff9b:1::1]/", "https://[2606:4700::1111%251]/",
    # Names that only mean something inside.
    "https://localhost/", "https://LOCALHOST/", "https://localhost./", "https://a.localhost/", "https://db/",
    "https://printer.local/", "https://metadata.google.internal/",
]  # fmt: skip

FINE = [
    ("https://example.com/a.png", "https://example.com/a.png"),
    ("HTTPS://Example.COM/A.png", "https://example.com/A.png"),
    ("https://example.com:8443/a?b=c&d=%20", "https://example.com:8443/a?b=c&d=%20"),
    ("https://example.com./a", "https://example.com./a"),
    ("https://example.com/a@b", "https://example.com/a@b"),
    ("https://example.com/?u=https://user@inside/", "https://example.com/?u=https://user@inside/"),
    ("https://cdn_1.example.com/Café.jpg", "https://cdn_1.example.com/Caf%C3%A9.jpg"),
    ("https://bücher.example/a", "https://xn--bcher-kva.example/a"),
    ("https://8.8.8.8/a", "https://8.8.8.8/a"),
    ("https://[2606:4700::1111]/a", "https://[2606:4700::1111]/a"),
    ("https://[64:ff9b::808:808]/a", "https://[64:ff9b::808:808]/a"),
]


@pytest.mark.parametrize("url", NASTY)
def test_nasty_urls_are_refused(url: str) -> None:
    with pytest.raises(ServiceRefused) as caught:
        check_url(url, PUBLIC, service="result")
    assert caught.value.code == "url_not_allowed"
    assert caught.value.service == "result"


@pytest.mark.parametrize(("url", "requested"), FINE)
def test_honest_urls_pass(url: str, requested: str) -> None:
    assert check_url(url, PUBLIC) == requested


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:5000/a", "http://localhost/a", "https://[::1]/", "http://db/", "http://10.0.0.1/"]
)
def test_development_may_reach_private_addresses(url: str) -> None:
    check_url(url, PRIVATE)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "http://u@localhost/", "http://0x7f.1/", "http://[fe80::1%25lo]/", "http://"]
)
def test_development_does_not_mean_anything_goes(url: str) -> None:
    with pytest.raises(ServiceRefused):
        check_url(url, PRIVATE)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("cdn.upsampler.com", True),
        ("a.b.upsampler.com", True),
        ("CDN.Upsampler.com.", True),
        ("files.example.org", True),
        ("upsampler.com", False),
        ("evilupsampler.com", False),
        ("cdn.upsampler.com.evil.org", False),
        ("a.files.example.org", False),
        ("8.8.8.8", False),
    ],
)
def test_hosts_are_matched_against_the_list(host: str, allowed: bool) -> None:
    policy = replace(PUBLIC, hosts=("*.Upsampler.com", "files.example.org"))
    if allowed:
        check_url(f"https://{host}/a", policy)
    else:
        with pytest.raises(ServiceRefused):
            check_url(f"https://{host}/a", policy)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60))
def test_any_text_is_either_refused_or_a_public_https_url(text: str) -> None:
    for url in (text, f"https://{text}", f"https://{text}/a"):
        try:
            assert check_url(url, PUBLIC).startswith("https://")
        except ServiceRefused as error:
            assert error.code == "url_not_allowed"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True),
        ("172.15.255.255", True),
        ("172.32.0.0", True),
        ("100.63.255.255", True),
        ("100.64.0.0", False),
        ("192.0.0.9", False),
        ("223.255.255.255", True),
        ("224.0.0.0", False),
        ("2a00:1450::1", True),
        ("::ffff:8.8.8.8", True),
        ("::ffff:192.168.0.1", False),
        ("2002:808:808::1", True),
        ("2002:a00:1::1", False),
        ("64:ff9b::8.8.8.8", True),
        ("64:ff9b::127.0.0.1", False),
        ("64:ff9b::224.0.0.1", False),
        ("2001:0:53aa::1", False),
        ("4000::1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ip_address(address)) is public


NOW = datetime(2026, 10, 21, 7, 28, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2026 07:29:00 -0000", 60.0),
        ("Wed, 21 Oct 2026 09:29:00 +0200", 60.0),
        ("Wed, 21 Oct 2026 07:27:59 GMT", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("inf", None),
        ("nan", None),
        ("٣", None),
        ("9" * 400, None),
        ("Wed, 99 Oct 2026 07:28:30 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 251_609_819_459.0),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    headers = {} if value is None else {"Retry-After": value}
    assert retry_after_seconds(headers, NOW) == seconds
