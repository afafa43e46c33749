"""The command line of ssh: nothing of a hop becomes anything else, keys stand nowhere."""

from __future__ import annotations

import re
import shlex

import pytest

from gatewayd.core.model import SshHop, SshTunnel
from gatewayd.core.secret import Secret
from gatewayd.core.ssh import (
    FORWARDS,
    HOST,
    USER,
    Identities,
    channel_fault,
    command,
    describe,
    may_pass,
    pause,
    words_of,
)

LAST = SshHop("root@10.0.0.8", 10022, Secret("KEY TEXT"))
HEAD = SshHop("bastion@head.example", 2222, Secret("HEAD KEY"))
PROXY = SshHop("ubuntu@fd00::1", 22, Secret("PROXY KEY"))


def option(argv: tuple[str, ...] | list[str], name: str) -> str:
    (value,) = (word.split("=", 1)[1] for word in argv if word.startswith(f"{name}="))
    return value


def test_one_server_is_connected_to_directly() -> None:
    argv = command(SshTunnel((LAST,), 8000), "/run/a", Identities(("/keys/0",)))
    assert argv[0] == "ssh"
    assert argv[argv.index("-F") + 1] == "none"
    assert argv[argv.index("-L") + 1] == "/run/a:localhost:8000"
    assert argv[argv.index("-i") + 1] == "/keys/0"
    assert argv[-6:] == ("-p", "10022", "-l", "root", "--", "10.0.0.8")
    assert not any("ProxyCommand" in word for word in argv)


def test_jumps_are_nested_each_with_its_own_key() -> None:
    argv = command(
        SshTunnel((HEAD, PROXY, LAST), 8000), "/run/a", Identities(("/k/0", "/k/1", None))
    )
    assert "-i" not in argv
    inner = shlex.split(option(argv, "ProxyCommand"))
    assert inner[inner.index("-W") + 1] == "[10.0.0.8]:10022"
    assert inner[inner.index("-i") + 1] == "/k/1"
    assert inner[-6:] == ["-p", "22", "-l", "ubuntu", "--", "fd00::1"]
    outer = shlex.split(option(inner, "ProxyCommand"))
    assert outer[outer.index("-W") + 1] == "[fd00::1]:22"
    assert outer[outer.index("-i") + 1] == "/k/0"
    assert outer[-6:] == ["-p", "2222", "-l", "bastion", "--", "head.example"]


def test_no_key_text_stands_in_it() -> None:
    argv = command(SshTunnel((HEAD, PROXY, LAST), 8000), "/run/a", Identities(("/0", "/1", "/2")))
    assert not [word for word in argv if "KEY" in word]


def test_percent_signs_and_colons_of_paths_stay_what_they_are() -> None:
    argv = command(SshTunnel((LAST,), 80), "/run/a:b%h", Identities(("/keys/%u $(x)",)))
    assert argv[argv.index("-L") + 1] == r"/run/a\:b%%h:localhost:80"
    assert argv[argv.index("-i") + 1] == "/keys/%%u $(x)"
    argv = command(SshTunnel((HEAD, LAST), 80), "/run/a", Identities(("/keys/%u $(x)", None)))
    (inner,) = (word.split("=", 1)[1] for word in argv if word.startswith("ProxyCommand="))
    inner_argv = shlex.split(inner.replace("%%", "%"))
    assert inner_argv[inner_argv.index("-i") + 1] == "/keys/%%u $(x)"


@pytest.mark.parametrize(
    "text",
    ["-oProxyCommand=x@h", "u@-h", "u@h x", "u@$(x)", "u@h;x", "u@`x`", "@h", "u\\@h", "u@@h", "u"],
)
def test_what_is_no_destination(text: str) -> None:
    assert re.fullmatch(f"{USER}@{HOST}", text) is None


@pytest.mark.parametrize("user", ["ubuntu", "john.doe", "john@corp.example", "CORP\\john", "a+b-c"])
def test_users_of_directories(user: str) -> None:
    hop = SshHop(f"{user}@10.0.0.9", 22, None)
    assert re.fullmatch(f"{USER}@{HOST}", hop.destination)
    argv = command(SshTunnel((hop, hop), 80), "/run/a", Identities((None, None)))
    inner = shlex.split(option(argv, "ProxyCommand"))
    for words in (list(argv), inner):
        assert words[-6:] == ["-p", "22", "-l", user, "--", "10.0.0.9"]


def test_words_are_sshs_own_once_each() -> None:
    lines = ["banner"] * 9 + [FORWARDS, "u@h: Permission denied (publickey)."]
    assert words_of(lines) == "banner; u@h: Permission denied (publickey)."
    assert words_of([]) == ""
    assert words_of(["x" * 4000]) == "x" * 300
    assert channel_fault("channel 7: open failed: x") == "open failed: x"
    assert channel_fault("Connection to 10.0.0.1 closed by remote host.") == ""


def test_attempts_double_up_to_half_a_minute_with_up_to_half_off() -> None:
    assert [pause(n, 1.0) for n in range(8)] == [0, 1, 2, 4, 8, 16, 30, 30]
    assert [pause(n, 0.0) for n in range(8)] == [0, 0.5, 1, 2, 4, 8, 15, 15]


def test_where_it_goes_is_told_without_keys() -> None:
    assert describe(SshTunnel((HEAD, LAST), 80)) == (
        "ssh bastion@head.example:2222, root@10.0.0.8:10022 to port 80"
    )


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        ("ssh: connect to host 10.0.0.1 port 22: Connection refused", True),
        ("ssh: connect to host 10.0.0.1 port 22: No route to host", True),
        ("kex_exchange_identification: Connection closed by remote host", True),
        ("kex_exchange_identification: read: Connection reset by peer", True),
        (
            "channel 0: open failed: connect failed: Connection refused; stdio forwarding failed",
            True,
        ),
        ("ssh: Could not resolve hostname h: Temporary failure in name resolution", True),
        ("ssh: Could not resolve hostname h: Name or service not known", False),
        ("u@h: Permission denied (publickey).", False),
        ("u@h: Permission denied (publickey).; Connection closed by UNKNOWN port 65535", False),
        ("open failed: administratively prohibited: x; Connection closed by UNKNOWN", False),
        ("ssh exited with 1", False),
    ],
)
def test_what_may_be_over_in_a_moment(words: str, passes: bool) -> None:
    assert may_pass(words) is passes
