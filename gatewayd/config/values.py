"""The words of the file: durations, sizes, addresses, domains. Text in, value out, and back.

Owns: what they look like. Does not own: where they stand in the file (config.schema).
Everything that does not parse is a `BadValueError`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re

from gatewayd.config.errors import BadValueError
from gatewayd.config.model import ListenAddress, PortRange
from gatewayd.core.model import Address, TcpAddress, UnixAddress

SOCKET_PATH_MAX = 107  # sun_path has 108 bytes, the last one is NUL

DURATION = "expected a duration such as 250ms, 5s, 10m or 1h"
SIZE = "expected a size such as 64KiB or 16MiB"
ADDRESS = "expected host:port or unix:/path"
LISTEN = f"{ADDRESS}, or fd:NAME"
SOCKET = "expected the absolute path of a Unix socket"
REPLICA = "expected unix:/path or http://host:port"
REPLICA_URL = "expected http://host:port"
AUTHORITY = "expected http://host:port/path or unix:/socket:/path"
DOMAIN = "expected a domain such as llama.example.com"
NETWORK = "expected an address or a CIDR such as 10.0.0.0/8"
PORTS = "expected a range of ports such as 10001-11999"

_URL = re.compile(r"[A-Za-z]+://([A-Za-z0-9.-]+(?::\d+)?)")
_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-zµ]*)\s*")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_OTHER_SECONDS = {
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("msec", "millis", "milliseconds"), "ms"),
}
_LONGEST_S = 1e12  # no clock goes further, and no integer is too large for a float here
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_DOMAIN_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def did_you_mean(text: str) -> str:
    return f"did you mean `{text}`?"


# --- durations and sizes -----------------------------------------------------------------------


def parse_duration(value: str | float) -> float:
    """Seconds of `250ms`, `5s`, `10m`, `1h`; a plain number is seconds."""
    if not isinstance(value, str):
        if not 0 <= value <= _LONGEST_S:
            raise BadValueError(DURATION)
        return float(value)
    match = _NUMBER_AND_UNIT.fullmatch(value)
    if match is None:
        raise BadValueError(DURATION)
    number, unit = match.groups()
    if float(number) > _LONGEST_S:  # hundreds of digits are infinite
        raise BadValueError(DURATION)
    if unit in _SECONDS and value == number + unit:
        return float(number) * _SECONDS[unit]
    if not unit and value == number:
        return float(number)
    wanted = _OTHER_SECONDS.get(unit.lower(), unit.lower())
    if wanted == "d":
        raise BadValueError(DURATION, suggestion=did_you_mean(f"{float(number) * 24:g}h"))
    known = wanted in _SECONDS
    raise BadValueError(DURATION, suggestion=did_you_mean(number + wanted) if known else None)


def format_duration(seconds: float) -> str:
    """The shortest exact text: 0.25 -> `250ms`, 600 -> `10m`, 90 -> `90s`."""
    if seconds == 0:
        return "0s"
    for unit in ("h", "m", "s"):
        if seconds % _SECONDS[unit] == 0:
            return f"{round(seconds / _SECONDS[unit])}{unit}"
    number, unit = (seconds * 1000, "ms") if seconds < 1 else (seconds, "s")
    return f"{number:.9f}".rstrip("0").rstrip(".") + unit


def parse_size(value: str | int) -> int:
    """Bytes of `64KiB`, `16MiB`; a plain number is bytes."""
    if not isinstance(value, str):
        if value < 0:
            raise BadValueError(SIZE)
        return value
    match = _NUMBER_AND_UNIT.fullmatch(value)
    if match is None:
        raise BadValueError(SIZE)
    number, unit = match.groups()
    if value == number + unit and (unit in _BYTES or not unit):
        size = float(number) * _BYTES.get(unit, 1)
        if not size.is_integer():
            raise BadValueError("expected a whole number of bytes")
        return int(size)
    wanted = {"": "B", "k": "KiB", "m": "MiB", "g": "GiB", "b": "B"}.get(unit[:1].lower())
    plausible = wanted is not None and unit.lower() in ("", "b", *_around(unit[:1].lower()))
    raise BadValueError(SIZE, suggestion=did_you_mean(f"{number}{wanted}") if plausible else None)


def _around(letter: str) -> tuple[str, str, str]:
    return letter, f"{letter}b", f"{letter}ib"


def format_size(size: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"


# --- addresses ---------------------------------------------------------------------------------


def parse_port(text: str, *, zero: bool = False) -> int:
    if not (text.isascii() and text.isdigit()) or not (0 if zero else 1) <= int(text) <= 65535:
        raise BadValueError(f"expected a port between {0 if zero else 1} and 65535")
    return int(text)


def parse_socket_path(path: str) -> UnixAddress:
    """A path that the kernel takes as a socket's name: absolute, at most 107 bytes."""
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise BadValueError(SOCKET)
    length = len(path.encode())
    if length > SOCKET_PATH_MAX:
        raise BadValueError(
            f"socket path is {length} bytes long, at most {SOCKET_PATH_MAX} fit", show_found=False
        )
    return UnixAddress(path)


def _parse_host_port(text: str, expected: str, *, zero: bool) -> TcpAddress:
    """`zero`: this is an address to bind, where port 0 is any free one."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        bare_port = zero and port.isascii() and port.isdigit()
        raise BadValueError(
            expected, suggestion=did_you_mean(f"0.0.0.0:{port}") if bare_port else None
        )
    number = parse_port(port, zero=zero)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            return TcpAddress(str(ipaddress.IPv6Address(host)), number)
        except ValueError:
            raise BadValueError("expected an IPv6 address between [ and ]") from None
    if ":" in host:
        raise BadValueError(
            expected, suggestion=f"an IPv6 address stands in brackets: [{host}]:{port}"
        )
    if not re.fullmatch(r"[A-Za-z0-9._-]+", host):
        raise BadValueError(expected)
    return TcpAddress(host.lower(), number)


def parse_address(text: str) -> Address:
    """`host:port`, `[v6]:port` or `unix:/path`; the text of an `Address` gives it back."""
    if text.startswith("unix:"):
        return parse_socket_path(text.removeprefix("unix:"))
    if text.startswith("/"):
        raise BadValueError(ADDRESS, suggestion=did_you_mean(f"unix:{text}"))
    if url := _URL.match(text):
        host = url[1]
        raise BadValueError(ADDRESS, suggestion=did_you_mean(host) if ":" in host else None)
    return _parse_host_port(text, ADDRESS, zero=True)


def format_address(address: Address) -> str:
    return str(address)


def parse_listen_address(text: str) -> ListenAddress:
    """As `parse_address`, and `fd:NAME` for a socket that systemd hands over."""
    if not text.startswith("fd:"):
        return ListenAddress(parse_address(text))
    name = text.removeprefix("fd:")
    if not re.fullmatch(r"[!-9;-~]{1,255}", name):  # systemd.socket(5), FileDescriptorName=
        raise BadValueError("expected the FileDescriptorName of a systemd socket after fd:")
    return ListenAddress(None, name)


def parse_own_address(text: str) -> Address | ListenAddress:
    """Where control listens alone: as `parse_listen_address`, a plain address for what is one."""
    listen = parse_listen_address(text)
    return listen if listen.address is None else listen.address


def parse_replica_url(text: str) -> TcpAddress:
    """`http://host:port`, a trailing slash is cut; nothing else of a URL means anything here."""
    rest = text.removeprefix("http://")
    if rest == text:
        if text.startswith("https://"):
            raise BadValueError("replicas are spoken to in plain HTTP: expected http://host:port")
        bare = re.fullmatch(r"[A-Za-z0-9.-]+:\d+/?", text)
        raise BadValueError(
            REPLICA_URL,
            suggestion=did_you_mean(f"http://{text}") if bare else None,
        )
    host_port = rest.removesuffix("/")
    if re.search(r"[/?#]", host_port):
        raise BadValueError(f"{REPLICA_URL} without a path")
    if "@" in host_port:
        raise BadValueError(f"{REPLICA_URL} without user and password", show_found=False)
    return _parse_host_port(host_port, REPLICA_URL, zero=False)


def parse_replica(text: str) -> Address:
    """A replica in one word: `unix:/path` or `http://host:port`."""
    if text.startswith("unix:"):
        return parse_socket_path(text.removeprefix("unix:"))
    if text.startswith("/"):
        raise BadValueError(REPLICA, suggestion=did_you_mean(f"unix:{text}"))
    if text.startswith(("http://", "https://")) or re.fullmatch(r"[A-Za-z0-9.-]+:\d+/?", text):
        return parse_replica_url(text)
    raise BadValueError(REPLICA)


def replica_id(address: Address | str) -> str:
    """The id of a replica that was not given one: the same for as long as its address is, or the
    description of its tunnel."""
    return hashlib.sha256(str(address).encode()).hexdigest()[:8]


def parse_authority_url(text: str) -> tuple[Address, str]:
    """Where an authority is asked: `http://host[:port]/path` or `unix:/socket[:/path]`."""
    if text.startswith("unix:"):
        socket_path, _, path = text.removeprefix("unix:").partition(":")
        if path and not path.startswith("/"):
            raise BadValueError("expected unix:/socket:/path")
        return parse_socket_path(socket_path), path
    if not text.startswith("http://"):
        raise BadValueError(AUTHORITY)
    host, slash, path = text.removeprefix("http://").partition("/")
    if "@" in host:
        raise BadValueError(f"{AUTHORITY} without user and password", show_found=False)
    if re.search(r"[\s?#]", host) or re.search(r"[\s#]", path):
        raise BadValueError(AUTHORITY)
    if not re.search(r":\d+$", host):
        host += ":80"
    return _parse_host_port(host, AUTHORITY, zero=False), slash + path


def parse_port_range(text: str) -> PortRange:
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
    if match is None:
        raise BadValueError(PORTS)
    ports = PortRange(parse_port(match[1]), parse_port(match[2]))
    if ports.first > ports.last:
        raise BadValueError(PORTS, suggestion=did_you_mean(f"{ports.last}-{ports.first}"))
    return ports


# --- names -------------------------------------------------------------------------------------


def parse_domain(text: str) -> str:
    """A host name as clients send it: lower case, no port, no trailing dot."""
    name = text.lower().removesuffix(".")
    if url := _URL.match(name):
        host = url[1].partition(":")[0]
        raise BadValueError("expected a domain, not a URL", suggestion=did_you_mean(host))
    host, colon, port = name.rpartition(":")
    if colon and port.isdigit() and ":" not in host:
        raise BadValueError("expected a domain without a port", suggestion=did_you_mean(host))
    if not name.isascii():
        raise BadValueError("expected a domain in ASCII (the xn-- form of other letters)")
    labels = name.split(".")
    if len(name) > 253 or not all(_DOMAIN_LABEL.fullmatch(label) for label in labels):
        raise BadValueError(DOMAIN)
    return name


def parse_network(text: str) -> str:
    """A CIDR in canonical form; a plain address is a network of one."""
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise BadValueError(NETWORK) from None
