"""Words in, values out, and back."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.config import values
from gatewayd.config.errors import BadValueError
from gatewayd.config.model import ListenAddress, PortRange
from gatewayd.core.model import TcpAddress, UnixAddress


def refusal(parse: object, text: object) -> str:
    with pytest.raises(BadValueError) as info:
        parse(text)  # type: ignore[operator]
    return str(info.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("5s", 5),
        ("10m", 600),
        ("1h", 3600),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("30", 30),
        (30, 30),
        (0.5, 0.5),
        ("0", 0),
        (0, 0),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert values.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10 s", "10s"),
        ("5sec", "5s"),
        ("5 seconds", "5s"),
        ("5min", "5m"),
        ("5M", "5m"),
        ("2 Hours", "2h"),
        ("100msec", "100ms"),
        ("1d", "24h"),
        (" 5s", "5s"),
    ],
)
def test_a_duration_in_other_words_is_explained(text: str, hint: str) -> None:
    expected = "expected a duration such as 250ms, 5s, 10m or 1h"
    assert refusal(values.parse_duration, text) == f"{expected}; did you mean `{hint}`?"


@pytest.mark.parametrize("text", ["", "fast", "1h30m", "-5s", "s", "5x", -1, float("nan"), "1e3"])
def test_what_is_no_duration(text: str | float) -> None:
    assert refusal(values.parse_duration, text).startswith("expected a duration")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64KiB", 65536),
        ("16MiB", 16 << 20),
        ("1GiB", 1 << 30),
        ("1.5KiB", 1536),
        ("10B", 10),
        ("1024", 1024),
        (1024, 1024),
        (0, 0),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert values.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("64k", "64KiB"),
        ("64K", "64KiB"),
        ("64kb", "64KiB"),
        ("64MB", "64MiB"),
        ("64mib", "64MiB"),
        ("64 MiB", "64MiB"),
        ("1g", "1GiB"),
        ("10b", "10B"),
    ],
)
def test_a_size_in_other_words_is_explained(text: str, hint: str) -> None:
    expected = "expected a size such as 64KiB or 16MiB"
    assert refusal(values.parse_size, text) == f"{expected}; did you mean `{hint}`?"


@pytest.mark.parametrize("text", ["", "big", "-1KiB", -1, "1TiB", "0.3B"])
def test_what_is_no_size(text: str | int) -> None:
    assert "expected a " in refusal(values.parse_size, text)


@given(st.integers(0, 10**9))
def test_durations_survive_being_written(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert values.parse_duration(values.format_duration(seconds)) == pytest.approx(seconds)


@given(st.floats(0, 1e9))
def test_every_duration_can_be_written(seconds: float) -> None:
    assert values.parse_duration(values.format_duration(seconds)) == pytest.approx(seconds)


@given(st.integers(0, 1 << 45))
def test_sizes_survive_being_written(size: int) -> None:
    assert values.parse_size(values.format_size(size)) == size


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "250ms"), (5, "5s"), (90, "90s"), (600, "10m"), (7200, "2h")]
)
def test_durations_are_written_short(seconds: float, text: str) -> None:
    assert values.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", TcpAddress("127.0.0.1", 8000)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("[::1]:80", TcpAddress("::1", 80)),
        ("unix:/run/admin.sock", UnixAddress("/run/admin.sock")),
    ],
)
def test_addresses_there_and_back(text: str, address: TcpAddress | UnixAddress) -> None:
    assert values.parse_address(text) == address
    assert values.format_address(address) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected host:port or unix:/path"),
        ("localhost", "expected host:port or unix:/path"),
        (":8000", "expected host:port or unix:/path; did you mean `0.0.0.0:8000`?"),
        ("8000", "expected host:port or unix:/path; did you mean `0.0.0.0:8000`?"),
        ("/run/a.sock", "expected host:port or unix:/path; did you mean `unix:/run/a.sock`?"),
        ("http://h:80/", "expected host:port or unix:/path; did you mean `h:80`?"),
        (
            "::1:80",
            "expected host:port or unix:/path; an IPv6 address stands in brackets: [::1]:80",
        ),
        ("[::zz]:80", "expected an IPv6 address between [ and ]"),
        ("h:http", "expected a port between 0 and 65535"),
        ("h:65536", "expected a port between 0 and 65535"),
        ("unix:run/a.sock", "expected the absolute path of a Unix socket"),
        ("unix:", "expected the absolute path of a Unix socket"),
    ],
)
def test_what_is_no_address(text: str, message: str) -> None:
    assert refusal(values.parse_address, text) == message


def test_a_socket_path_has_at_most_107_bytes() -> None:
    fits = "/" + "a" * 106
    assert values.parse_socket_path(fits) == UnixAddress(fits)
    assert (
        refusal(values.parse_socket_path, fits + "a")
        == "socket path is 108 bytes long, at most 107 fit"
    )
    # bytes, not characters
    assert refusal(values.parse_socket_path, "/" + "é" * 54).startswith("socket path is 109 bytes")


def test_listeners_may_come_from_systemd() -> None:
    assert values.parse_listen_address("fd:web") == ListenAddress(None, "web")
    assert values.parse_listen_address("0.0.0.0:80").address == TcpAddress("0.0.0.0", 80)
    assert "FileDescriptorName" in refusal(values.parse_listen_address, "fd:")


@pytest.mark.parametrize("text", ["http://10.0.0.7:30000", "http://10.0.0.7:30000/"])
def test_replica_urls(text: str) -> None:
    assert values.parse_replica_url(text) == TcpAddress("10.0.0.7", 30000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://h:1", "replicas are spoken to in plain HTTP: expected http://host:port"),
        ("http://h", "expected http://host:port"),
        ("http://:80", "expected http://host:port"),
        ("http://h:0", "expected a port between 1 and 65535"),
        ("http://h:1/v1", "expected http://host:port without a path"),
        ("http://h:1?x", "expected http://host:port without a path"),
        ("http://u:p@h:1", "expected http://host:port without user and password"),
        ("h:1", "expected http://host:port; did you mean `http://h:1`?"),
        ("ftp://h:1", "expected http://host:port"),
    ],
)
def test_what_is_no_replica_url(text: str, message: str) -> None:
    assert refusal(values.parse_replica_url, text) == message


def test_the_id_of_a_replica_is_a_short_hash_of_its_address() -> None:
    # printf %s unix:/run/replicas/a.sock | sha256sum | cut -c 1-8
    assert values.replica_id(UnixAddress("/run/replicas/a.sock")) == "bf11b502"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("http://127.0.0.1:9000/check", (TcpAddress("127.0.0.1", 9000), "/check")),
        ("http://auth.internal/check?a=b", (TcpAddress("auth.internal", 80), "/check?a=b")),
        ("http://auth.internal", (TcpAddress("auth.internal", 80), "")),
        ("unix:/run/auth.sock:/check", (UnixAddress("/run/auth.sock"), "/check")),
        ("unix:/run/auth.sock", (UnixAddress("/run/auth.sock"), "")),
    ],
)
def test_authorities(text: str, parsed: object) -> None:
    assert values.parse_authority_url(text) == parsed


@pytest.mark.parametrize("text", ["", "https://h/", "h:80/check", "http://h:x/", "http://h/a b"])
def test_what_is_no_authority(text: str) -> None:
    assert refusal(values.parse_authority_url, text).startswith("expected ")


def test_port_ranges() -> None:
    assert values.parse_port_range("10001-11999") == PortRange(10001, 11999)
    assert refusal(values.parse_port_range, "2-1").endswith("did you mean `1-2`?")
    assert "between 1 and 65535" in refusal(values.parse_port_range, "0-70000")
    assert refusal(values.parse_port_range, "80").startswith("expected a range of ports")


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("localhost", "localhost"),
        ("my_gateway.internal", "my_gateway.internal"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_domains(text: str, domain: str) -> None:
    assert values.parse_domain(text) == domain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://example.com/x", "expected a domain, not a URL; did you mean `example.com`?"),
        ("http://[::", "expected a domain such as llama.example.com"),
        ("example.com:80", "expected a domain without a port; did you mean `example.com`?"),
        ("exämple.com", "expected a domain in ASCII (the xn-- form of other letters)"),
        ("a..b", "expected a domain such as llama.example.com"),
        ("-a.b", "expected a domain such as llama.example.com"),
        ("a b", "expected a domain such as llama.example.com"),
        ("a" * 64 + ".b", "expected a domain such as llama.example.com"),
        ("a." * 127 + "b", "expected a domain such as llama.example.com"),
    ],
)
def test_what_is_no_domain(text: str, message: str) -> None:
    assert refusal(values.parse_domain, text) == message


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.1/32"),
        ("2001:DB8::1", "2001:db8::1/128"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
    ],
)
def test_networks_are_canonical(text: str, network: str) -> None:
    assert values.parse_network(text) == network


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused_in_words(text: str) -> None:
    parsers = (
        values.parse_duration,
        values.parse_size,
        values.parse_address,
        values.parse_listen_address,
        values.parse_replica,
        values.parse_authority_url,
        values.parse_port_range,
        values.parse_domain,
        values.parse_network,
    )
    for parse in parsers:
        with suppress(BadValueError):
            parse(text)  # type: ignore[operator]
