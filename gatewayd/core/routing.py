"""Host and path to a service, or the answer that stands in for one.

Owns: host syntax, target forms (RFC 9112, 3.2), the normalised path that prefix rules are
decided on. Does not own: the rules (core.ratelimit, allow-lists), what travels on (the raw target).
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from gatewayd.core import reply
from gatewayd.core.headers import BadHead
from gatewayd.core.reply import LocalReply

_HOST: Final = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(?::(\d{0,5}))?\Z")
_ENCODED: Final = re.compile(rb"%[0-9A-Fa-f]{2}")
_CONTROL: Final = re.compile(r"[\x00-\x20\x7f]")


def host_name(raw: bytes) -> str:
    """The lower-case host of a Host field, without port and trailing dot.

    Raises BadHead for what RFC 9110, 7.2 does not allow (userinfo, junk).
    """
    found = _HOST.match(raw)
    if found is None:
        raise BadHead("Host is ill-formed")
    name = found.group(1).decode("ascii").lower()
    return name[:-1] if name.endswith(".") else name


def split_target(target: str, host: str) -> str:
    """The origin form of a request target. `host` is what the Host field named.

    Raises BadHead for an absolute form that names another host, for control characters and for
    a fragment, which belongs to the client (RFC 9112, 3.2).
    """
    if "#" in target:
        raise BadHead("The request target holds a fragment")
    if target.startswith("/") or target == "*":
        if _CONTROL.search(target):
            raise BadHead("The request target holds control characters")
        return target
    scheme, sep, rest = target.partition("://")
    if not sep or scheme.lower() not in ("http", "https"):
        raise BadHead("The request target is ill-formed")
    cut = min((i for i in (rest.find("/"), rest.find("?")) if i >= 0), default=len(rest))
    authority, path = rest[:cut], rest[cut:]
    if "@" in authority or host_name(authority.encode("utf-8", "surrogateescape")) != host:
        raise BadHead("The request target and Host name different hosts")
    if not path.startswith("/"):
        path = "/" + path
    if _CONTROL.search(path):
        raise BadHead("The request target holds control characters")
    return path


def unknown_host(method: str, target: str) -> LocalReply:
    """Cloud load balancers probe `GET /` by address and want 200."""
    if target == "/" and method in ("GET", "HEAD"):
        return reply.HELLO
    return reply.NOT_FOUND


def normal_path(target: str) -> str:
    """The path that prefix rules see: decoded once, slashes merged, dot segments resolved.

    Raises BadHead for a path whose meaning depends on who decodes it: one that would decode
    again, holds a backslash or NUL, or hides a dot segment behind an encoded slash.
    """
    path = target.partition("?")[0]
    if "%" not in path and "//" not in path and "/." not in path and "\\" not in path:
        return path
    raw = path.encode("utf-8", "surrogateescape")
    decoded = unquote_to_bytes(raw)
    lower = raw.lower()
    if _ENCODED.search(decoded) or b"\\" in decoded or b"\0" in decoded:
        raise BadHead("The path is ambiguous")
    if b"%2f" in lower and b".." in decoded:
        raise BadHead("The path is ambiguous")
    segments: list[bytes] = []
    parts = decoded.split(b"/")
    for part in parts[1:]:
        if part == b"..":
            if segments:
                segments.pop()
        elif part and part != b".":
            segments.append(part)
    slash = b"/" if segments and parts[-1] in (b"", b".", b"..") else b""
    return (b"/" + b"/".join(segments) + slash).decode("utf-8", "surrogateescape")


def path_allowed(path: str, allowed: tuple[str, ...]) -> bool:
    """`allowed` holds exact paths, and prefixes, which end in `/`."""
    for rule in allowed:
        if path == rule if not rule.endswith("/") else path.startswith(rule):
            return True
    return False


def strip_prefix(target: str, prefix: str) -> str:
    """`target` without `prefix` when it lies below it, by whole segments; else unchanged."""
    bare = prefix.rstrip("/")
    if not bare or not target.startswith(bare):
        return target
    rest = target[len(bare) :]
    if rest[:1] == "/":
        return rest
    if rest[:1] in ("", "?"):
        return "/" + rest
    return target
