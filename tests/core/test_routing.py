from __future__ import annotations

import posixpath
from urllib.parse import unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gatewayd.core import reply
from gatewayd.core.headers import BadHead
from gatewayd.core.routing import (
    host_name,
    normal_path,
    path_allowed,
    split_target,
    strip_prefix,
    unknown_host,
)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"a.example", "a.example"),
        (b"A.Example:80", "a.example"),
        (b"a.example.", "a.example"),
        (b"a.example.:8080", "a.example"),
        (b"a.example:", "a.example"),
        (b"127.0.0.1:80", "127.0.0.1"),
        (b"[::1]", "[::1]"),
        (b"[2001:DB8::1]:80", "[2001:db8::1]"),
        (b"localhost", "localhost"),
        (b"", ""),
        (b":80", ""),
    ],
)
def test_hosts_are_named_without_port_dot_and_case(raw: bytes, name: str) -> None:
    assert host_name(raw) == name


@pytest.mark.parametrize(
    "raw",
    [b"a@b", b"a:b@c", b"a/b", b"a b", b"a\\b", b"a:b", b"a:123456", b"a:-1", b"[::1", b"::1",
     b"a\xff", b"a?b", b"a#b", b"a\n", b"a:80\n", b"a:80 ", b"[a]b", b"<a>", b'"a"', b"a:80:90",
     b"\xd9\xa1.example", b"a:\xd9\xa1"],
)  # fmt: skip
def test_ill_formed_hosts_are_refused(raw: bytes) -> None:
    with pytest.raises(BadHead):
        host_name(raw)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/a?b", "/a?b"),
        ("*", "*"),
        ("//a", "//a"),
        ("http://h", "/"),
        ("http://h/", "/"),
        ("http://H:80/a?b", "/a?b"),
        ("HTTPS://h./a", "/a"),
        ("http://h?q", "/?q"),
        ("http://h?q/r", "/?q/r"),
    ],
)
def test_targets_become_origin_form(target: str, path: str) -> None:
    assert split_target(target, "h") == path


@pytest.mark.parametrize(
    "target",
    ["http://other/", "http://", "http:///a", "http://u@h/", "http://h@other/", "ftp://h/", "h",
     "h:80", "a/b", "", "/a#b", "http://h/#b", "/a\x00", "/a b", "/\x7f", "http://h/\t",
     "http://h\\.other/", "http://h:x/", "http://hh/"],
)  # fmt: skip
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(BadHead):
        split_target(target, "h")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/a", "/a"),
        ("/a/", "/a/"),
        ("/a?b/../c", "/a"),
        ("/a//b", "/a/b"),
        ("//a", "/a"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/../a", "/a"),
        ("/a/b/..", "/a/"),
        ("/a/b/.", "/a/b/"),
        ("/a/..", "/"),
        ("/..", "/"),
        ("/.", "/"),
        ("/%61", "/a"),
        ("/a%20b", "/a b"),
        ("/a%2fb", "/a/b"),
        ("/%2e%2e/a", "/a"),
        ("/a/%2e%2e/b", "/b"),
        ("/.a/..b/c.", "/.a/..b/c."),
        ("/a%zz", "/a%zz"),
        ("/%", "/%"),
        ("/a%3fb", "/a?b"),
        ("/%c3%a4", "/ä"),
        ("/%ff", "/\udcff"),
        ("/...", "/..."),
    ],
)
def test_prefix_rules_see_one_path(target: str, path: str) -> None:
    assert normal_path(target) == path


@pytest.mark.parametrize(
    "target",
    ["/%2561", "/%252e", "/a\\b", "/a%5cb", "/a%00", "/a%2f..", "/a%2F../b", "/..%2fb",
     "/%2e%2e%2fb", "/a%2f%2e%2e"],
)  # fmt: skip
def test_a_path_with_two_meanings_is_refused(target: str) -> None:
    with pytest.raises(BadHead):
        normal_path(target)


PATHS = st.lists(
    st.sampled_from(["a", "b", ".", "..", "", "%61", "%2e", "%2E%2e", "c.d", "%20"]), max_size=8
).map(lambda parts: "/" + "/".join(parts))


@given(PATHS)
def test_it_is_what_decoding_and_then_resolving_gives(path: str) -> None:
    expected = posixpath.normpath("/" + unquote(path).lstrip("/"))
    assert normal_path(path).rstrip("/") == expected.rstrip("/")


@given(PATHS)
def test_a_normal_path_is_its_own(path: str) -> None:
    once = normal_path(path)
    assume("%" not in once)
    assert normal_path(once) == once


@given(st.text(alphabet="/.%2efFcC5\\0a", max_size=20))
def test_no_way_around_an_allow_list_by_decoding_more(text: str) -> None:
    """Whoever decodes and resolves, once or again, ends below the same prefix or is refused."""
    target = "/" + text
    try:
        path = normal_path(target)
    except BadHead:
        return
    if not path_allowed(path, ("/a/",)):
        return
    resolved = posixpath.normpath("/" + unquote(unquote(target)).lstrip("/"))
    assert resolved == "/a" or resolved.startswith("/a/")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/v1/x", True), ("/v1/", True), ("/v1", False), ("/v1x", False), ("/gen", True),
     ("/gen/", False), ("/gen/x", False), ("/", False), ("", False)],
)  # fmt: skip
def test_allow_lists_hold_paths_and_prefixes(path: str, allowed: bool) -> None:
    assert path_allowed(path, ("/gen", "/v1/")) is allowed
    assert path_allowed(path, ()) is False


@pytest.mark.parametrize(
    ("target", "prefix", "stripped"),
    [
        ("/app/x", "/app", "/x"),
        ("/app/x", "/app/", "/x"),
        ("/app", "/app/", "/"),
        ("/app?x", "/app", "/?x"),
        ("/apple", "/app", "/apple"),
        ("/other", "/app", "/other"),
        ("/x", "/", "/x"),
        ("/app//x", "/app", "//x"),
        ("*", "/app", "*"),
    ],
)
def test_prefixes_are_stripped_by_segments(target: str, prefix: str, stripped: str) -> None:
    assert strip_prefix(target, prefix) == stripped


def test_only_the_root_of_an_unknown_host_is_answered() -> None:
    assert unknown_host("GET", "/") is reply.HELLO
    assert unknown_host("HEAD", "/") is reply.HELLO
    for method, target in (("POST", "/"), ("GET", "/x"), ("GET", "/?"), ("OPTIONS", "*")):
        assert unknown_host(method, target) is reply.NOT_FOUND
