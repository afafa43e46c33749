"""`gatewayd status` for eyes: aligned columns out of `/api/status`.

Owns: the layout. Does not own: the content (control.status).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Row = Sequence[str]


def render(status: dict[str, Any]) -> str:
    sections = [
        _gateway(status),
        _table(
            ("SERVICE", "DOMAINS", "FROM", "AUTH", "MODEL", "REQ/S", "REQUESTS"), _services(status)
        ),
        _table(("SERVICE", "REPLICA", "STATE", "IN FLIGHT", "ADDRESS"), _replicas(status)),
        _table(
            ("ROUTER OF", "TYPE", "MODE", "STATE", "ENDPOINT", "TARGETS", "RESTARTS"),
            _routers(status),
        ),
        [*_complaints(status)],
        _certificate_table(status),
        _certificate_faults(status),
        _table(("PROCESS", "PID", "STATE", "RESTARTS", "CONNECTIONS"), _processes(status)),
    ]
    return _joined(sections)


def _joined(sections: Sequence[Sequence[str]]) -> str:
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def render_certificates(certificates: Sequence[dict[str, Any]]) -> str:
    status = {"certificates": certificates}
    return _joined([_certificate_table(status), _certificate_faults(status)])


def _certificate_table(status: dict[str, Any]) -> list[str]:
    return _table(("CERTIFICATE FOR", "ISSUER", "EXPIRES", "SOURCE"), _certificates(status))


def _certificate_faults(status: dict[str, Any]) -> list[str]:
    return [f"{_certificate_name(c)}: {c['fault']}" for c in status["certificates"] if c["fault"]]


def _certificate_name(certificate: dict[str, Any]) -> str:
    """Its source says less: the authority of many, or the path that the fault names already."""
    domains = " ".join(certificate["domains"])
    return f"certificate {domains}" if domains else str(certificate["source"])


def _gateway(status: dict[str, Any]) -> list[str]:
    state = "draining" if status["draining"] else "ready" if status["ready"] else "not ready"
    lines = [
        f"{status['name']}: gatewayd {status['version']}, {state}, pid {status['pid']}, "
        f"up {_uptime(status['uptime_seconds'])}",
        "listening: "
        + ", ".join(f"{entry['kind']} {entry['address']}" for entry in status["listeners"]),
    ]
    if status["config"]:
        lines.append(f"configuration: {status['config']}")
    if status["cloud"]:
        lines.append(", ".join(f"{key}: {value}" for key, value in status["cloud"].items()))
    return lines


def _services(status: dict[str, Any]) -> Iterator[Row]:
    for service in status["services"]:
        yield (
            _name(status, service),
            " ".join(service["domains"]),
            service["origin"],
            "yes" if service["auth"] else "no",
            service["model"] or "-",
            _rate(service["requests_last_minute"] / 60),
            _ways(service["requests"]),
        )


def _ways(requests: dict[str, int]) -> str:
    """How many went on to a replica, and what share of them by which way."""
    total = sum(requests.values())
    shares = (f"{_percent(count, total)} {way}" for way, count in requests.items() if count)
    return f"{total}: {', '.join(shares)}" if total else "0"


def _rate(per_second: float) -> str:
    """One request a minute may not look like none."""
    return f"{per_second:.{1 if per_second >= 1 else 2}f}" if per_second else "0"


def _percent(count: int, total: int) -> str:
    """Neither a few of very many nor all but a few may look like none or all."""
    share = 100 * count / total
    if count < total:
        share = min(max(share, 0.1), 99.9)
    return f"{share:.0f}%" if 1 <= share <= 99 or count == total else f"{share:.1f}%"


def _replicas(status: dict[str, Any]) -> Iterator[Row]:
    for service in status["services"]:
        name = _name(status, service)
        for replica in service["replicas"]:
            in_flight = str(replica["in_flight"])
            state = ", ".join(filter(None, (replica["state"], replica["role"])))
            if replica["tunnel_fault"]:
                state = f"{state}: {replica['tunnel_fault']}"
            yield name, replica["id"], state, in_flight, replica["tunnel"] or replica["address"]
        if not service["replicas"]:
            yield name, "-", "no replica", "-", "-"


def _routers(status: dict[str, Any]) -> Iterator[Row]:
    for service in status["services"]:
        if (router := service["router"]) is not None:
            targets = router["targets"]
            yield (
                _name(status, service),
                router["type"],
                router["mode"],
                ", no ".join((router["state"], *router["lacks"])),
                router["endpoint"] or "-",
                f"{len(targets['serving'])}/{len(targets['desired'])}",
                str(router["restarts"]),
            )


def _certificates(status: dict[str, Any]) -> Iterator[Row]:
    for each in status["certificates"]:
        yield (
            " ".join(each["domains"]) or "-",
            each["issuer"] or "-",
            each["expires"] or "-",
            each["source"],
        )


def _complaints(status: dict[str, Any]) -> Iterator[str]:
    """Why a router is not up, in its own last words."""
    for service in status["services"]:
        router = service["router"]
        if router is None or router["endpoint"] is not None:
            continue
        name = _name(status, service)
        for why in (router["fault"], router["last_exit"], *router["last_words"][-3:]):
            if why:
                yield f"router of {name}: {why}"


def _processes(status: dict[str, Any]) -> Iterator[Row]:
    bridge = status["bridge"]
    named = [(f"worker {worker['slot']}", worker) for worker in status["workers"]]
    for name, process in [*named, *([("bridge", bridge)] if bridge else [])]:
        yield (
            name,
            str(process["pid"] or "-"),
            process["state"],
            str(process["restarts"]),
            str(process["connections"]),
        )


def _name(status: dict[str, Any], service: dict[str, Any]) -> str:
    own: bool = service["project"] == status["project"]
    return str(service["name"]) if own else f"{service['project']}/{service['name']}"


def _uptime(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"


def _table(head: Row, rows: Iterator[Row]) -> list[str]:
    """Columns as wide as their widest entry; nothing at all without a row."""
    lines = [tuple(row) for row in rows]
    if not lines:
        return []
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (tuple(head), *lines)
    ]
