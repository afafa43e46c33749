from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewayd.core.clients import ClientAddresses

PROXIES = ClientAddresses(["127.0.0.0/8", "10.0.0.0/8", "2001:db8::/32"])


def test_nobody_is_trusted_by_default() -> None:
    addresses = ClientAddresses(())
    assert not addresses.any
    assert not addresses.trusts("127.0.0.1")


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        ("127.0.0.1", True),
        ("10.255.0.1", True),
        ("11.0.0.1", False),
        ("::ffff:10.0.0.1", True),  # how a dual-stack socket names an IPv4 peer
        ("::ffff:11.0.0.1", False),
        ("2001:db8::5", True),
        ("2001:db9::5", False),
        ("::1", False),
        ("unix:", False),
        ("", False),
        ("localhost", False),
    ],
)
def test_who_is_trusted(address: str, trusted: bool) -> None:
    for _ in range(2):  # the second time from memory
        assert PROXIES.trusts(address) is trusted


@pytest.mark.parametrize(
    ("forwarded_for", "client", "chain"),
    [
        (None, "127.0.0.1", "127.0.0.1"),
        (b"", "127.0.0.1", "127.0.0.1"),
        (b"1.2.3.4", "1.2.3.4", "1.2.3.4, 127.0.0.1"),
        (b"9.9.9.9, 1.2.3.4", "1.2.3.4", "1.2.3.4, 127.0.0.1"),
        (b"1.2.3.4, 10.0.0.1", "1.2.3.4", "1.2.3.4, 10.0.0.1, 127.0.0.1"),
        (b"9.9.9.9,1.2.3.4,10.0.0.1", "1.2.3.4", "1.2.3.4, 10.0.0.1, 127.0.0.1"),
        (b"10.0.0.2, 10.0.0.1", "10.0.0.2", "10.0.0.2, 10.0.0.1, 127.0.0.1"),
        (b"junk, 10.0.0.1", "10.0.0.1", "10.0.0.1, 127.0.0.1"),
        (b"1.2.3.4, ", "127.0.0.1", "127.0.0.1"),
        (b"1.2.3.4:80", "127.0.0.1", "127.0.0.1"),
        (b"\xff", "127.0.0.1", "127.0.0.1"),
        (b"2001:db9::1", "2001:db9::1", "2001:db9::1, 127.0.0.1"),
    ],
)
def test_the_client_is_the_first_stranger_from_the_right(
    forwarded_for: bytes | None, client: str, chain: str
) -> None:
    assert PROXIES.client("127.0.0.1", forwarded_for) == (client, chain)


@given(st.lists(st.sampled_from(["1.2.3.4", "10.0.0.1", "junk", "::1", "5.6.7.8"]), max_size=6))
def test_what_stands_left_of_a_stranger_never_counts(hops: list[str]) -> None:
    said = ", ".join([*hops, "5.5.5.5", "10.0.0.9"]).encode()
    assert PROXIES.client("127.0.0.1", said) == ("5.5.5.5", "5.5.5.5, 10.0.0.9, 127.0.0.1")


def test_strangers_cannot_fill_the_memory() -> None:
    addresses = ClientAddresses(["10.0.0.0/8"])
    for number in range(6000):
        assert not addresses.trusts(f"11.0.{number // 256}.{number % 256}")
    assert len(addresses._known) <= 4096
    assert addresses.trusts("10.0.0.1")
