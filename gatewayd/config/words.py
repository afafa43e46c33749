"""The strings of the file: names, paths, addresses, secrets.

Owns: which YAML values they accept. Does not own: what the words mean (config.values).
"""

from __future__ import annotations

import os
import re
from typing import Annotated

from gatewayd.config import values
from gatewayd.config.errors import BadValueError
from gatewayd.config.leaf import Leaf, string, text_leaf
from gatewayd.config.model import ListenAddress, PortRange
from gatewayd.config.values import did_you_mean
from gatewayd.core.model import Address, TcpAddress, UnixAddress
from gatewayd.core.secret import Secret
from gatewayd.core.ssh import HOST, USER

_PREFIX = re.compile(r"/[^\s\\{}?#]*")  # what nginx takes for a location, without its quoting


def _matching(pattern: str, expected: str) -> Leaf:
    regex = re.compile(pattern)

    def parse(text: str) -> str:
        if regex.fullmatch(text):
            return text
        for repaired in (text.lower(), text.lower().replace("_", "-"), text.upper()):
            if regex.fullmatch(repaired):
                raise BadValueError(expected, suggestion=did_you_mean(repaired))
        raise BadValueError(expected)

    return text_leaf(parse, expected)


def _path(text: str) -> str:
    if text.startswith("~"):
        raise BadValueError("`~` is not replaced by a home directory", suggestion="write ${HOME}")
    return os.path.abspath(text)


def _access(value: object) -> str:
    if value is False:  # how YAML 1.1 reads a bare `off`, the word that is wanted here
        return "off"
    text = string(value, "expected stdout, off or the path of a file")
    return text if text in ("stdout", "off") else _path(text)


def _prefix(text: str) -> str:
    if _PREFIX.fullmatch(text):
        return text
    repaired = f"/{text}"
    hint = did_you_mean(repaired) if _PREFIX.fullmatch(repaired) else None
    raise BadValueError("expected a path that begins with /", suggestion=hint)


def _token(text: str) -> Secret:
    if not text.isascii() or " " in text:
        raise BadValueError("expected printable ASCII without spaces", show_found=False)
    return Secret(text)


def _sha256(text: str) -> bytes:
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        raise BadValueError("expected the 64 hexadecimal digits of a SHA-256")
    return bytes.fromhex(text)


def _gateway_domain(text: str) -> str:
    return values.parse_domain(text.removeprefix("*."))  # how other gateways write the same


def _domain(text: str) -> str:
    if text.startswith("*."):
        raise BadValueError("a service answers at whole domains, not at all below one")
    return values.parse_domain(text)


def _origin(text: str) -> str:
    if text == "*" or re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#,]+", text):
        return text
    bare = re.fullmatch(r"([a-z][a-z0-9+.-]*://[^\s/?#,]+)/", text)
    hint = did_you_mean(bare[1]) if bare else None
    raise BadValueError("expected * or an origin such as https://app.example.com", suggestion=hint)


_TEXT = Leaf(string, {"type": "string", "minLength": 1})
_TOKEN = text_leaf(_token, "expected a string")
_PATH = text_leaf(_path, "expected a path")
_PREFIX_LEAF = text_leaf(_prefix, "expected a path that begins with /")
_ID = _matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "expected an id of letters, digits, `-._`")
ROUTER_NAME = _matching(r"[a-z][a-z0-9_-]*", "expected the name of a router")


def router_or_null(value: object) -> object:
    if value is None or isinstance(value, str):
        return None if value is None else ROUTER_NAME.parse(value)
    raise BadValueError("expected the name of a router or a table")


Text = Annotated[str, _TEXT]
OptionalText = Text | None
ServiceName = Annotated[
    str,
    _matching(
        r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        "expected a DNS label (a-z, 0-9 and -, at most 63 of them)",
    ),
]
ProjectName = Annotated[
    str, _matching(r"[a-z0-9][a-z0-9_-]{0,62}", "expected a name of a-z, 0-9, - and _")
]
ReplicaId = Annotated[str, _ID]
HeaderName = Annotated[
    str, _matching(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,500}", "expected the name of a header")
]
Method = Annotated[str, _matching(r"[A-Z]+", "expected a method such as GET")]
Origin = Annotated[str, text_leaf(_origin, "expected an origin")]
Path = Annotated[str, _PATH]
OptionalPath = Path | None
AccessLog = Annotated[
    str, Leaf(_access, {"anyOf": [{"enum": ["stdout", "off", False]}, {"type": "string"}]})
]
Prefix = Annotated[str, _PREFIX_LEAF]
OptionalPrefix = Prefix | None
Token = Annotated[Secret, _TOKEN]

Sha256 = Annotated[bytes, text_leaf(_sha256, "expected the 64 hexadecimal digits of a SHA-256")]
GatewayDomain = Annotated[str, text_leaf(_gateway_domain, values.DOMAIN)]
Domain = Annotated[str, text_leaf(_domain, values.DOMAIN)]
BoundAddress = Annotated[ListenAddress, text_leaf(values.parse_listen_address, values.LISTEN)]
OwnAddress = Annotated[Address | ListenAddress, text_leaf(values.parse_own_address, values.LISTEN)]
OptionalAddress = OwnAddress | None
SocketPath = Annotated[UnixAddress, text_leaf(values.parse_socket_path, values.SOCKET)]
ReplicaUrl = Annotated[TcpAddress, text_leaf(values.parse_replica_url, values.REPLICA_URL)]
SshHost = Annotated[str, _matching(f"{USER}@{HOST}", "expected user@host")]
ReplicaText = Annotated[Address, text_leaf(values.parse_replica, f"{values.REPLICA} or a table")]
AuthorityUrl = Annotated[
    tuple[Address, str], text_leaf(values.parse_authority_url, values.AUTHORITY)
]
Network = Annotated[str, text_leaf(values.parse_network, values.NETWORK)]
PortSpan = Annotated[PortRange, text_leaf(values.parse_port_range, values.PORTS)]
