"""The body of a replica's registration, and what it means here.

Owns: its shape, the ways to a replica: a socket, a URL, a chain of ssh servers. Does not own:
whether it may be registered (control.registry), tunnels.

Unknown fields are ignored at every level: callers of other releases send more.
"""

from __future__ import annotations

import os
import stat
from typing import Annotated, NoReturn

from pydantic import Field

from gatewayd.config.values import parse_replica_url, parse_socket_path, replica_id
from gatewayd.control.api.model_bodies import Body
from gatewayd.control.api.replies import InvalidBodyError
from gatewayd.control.conflicts import NO_INTERNAL_IP, RefusedError
from gatewayd.core.model import Address, Replica, SshHop, SshTunnel, UnixAddress
from gatewayd.core.secret import Secret
from gatewayd.core.ssh import HOST, USER

Port = Annotated[int, Field(ge=1, le=65535)]
ReplicaId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,127}$")]


class SshProxyBody(Body):
    hostname: Annotated[str, Field(pattern=f"^{HOST}$", max_length=255)]
    username: Annotated[str, Field(pattern=f"^{USER}$", max_length=64)]
    port: Port


class RegisterReplicaBody(Body):
    job_id: ReplicaId | None = None
    id: ReplicaId | None = None
    socket: str | None = None
    url: str | None = None
    ssh_host: Annotated[str, Field(pattern=f"^{USER}@{HOST}$", max_length=320)] | None = None
    ssh_port: Port = 22
    app_port: int | None = None
    ssh_proxy: SshProxyBody | None = None
    ssh_proxy_private_key: str | None = None
    ssh_head_proxy: SshProxyBody | None = None
    ssh_head_proxy_private_key: str | None = None
    internal_ip: str | None = None


def to_replica(
    body: RegisterReplicaBody, project_key: Secret | None, *, by_internal_ip: bool = False
) -> Replica:
    """Raises RefusedError for an address that cannot be dialled, InvalidBodyError for what is
    missing. `by_internal_ip`: the gateway reaches it where other replicas do, so that no tunnel is
    needed. `project_key` opens whatever has no key of its own."""
    if by_internal_ip and body.url is None and not body.internal_ip:
        raise RefusedError(NO_INTERNAL_IP)
    if by_internal_ip and body.socket is None and body.url is None:
        body = body.model_copy(update={"url": _internal_url(body), "ssh_host": None})
    ways = (body.socket, body.url, body.ssh_host)
    if sum(way is not None for way in ways) != 1:
        raise RefusedError("a replica has exactly one of `socket`, `url` and `ssh_host`")
    tunnel = None
    if body.ssh_host is not None:
        tunnel = _tunnel(body, body.ssh_host, project_key)
        address: Address = UnixAddress("")  # until it is known where the tunnel listens
    else:
        address = _address(body)
    identity = body.job_id or body.id
    if identity is None and tunnel is not None:
        _missing("job_id")
    return Replica(
        identity or replica_id(address),
        address,
        origin="api",
        internal_ip=body.internal_ip or None,
        tunnel=tunnel,
    )


def _tunnel(body: RegisterReplicaBody, ssh_host: str, project_key: Secret | None) -> SshTunnel:
    if body.app_port is None:
        _missing("app_port")
    if not 1 <= body.app_port <= 65535:
        raise RefusedError(f"`app_port` {body.app_port} is no port")
    hops = (
        _hop(body.ssh_head_proxy, body.ssh_head_proxy_private_key, project_key),
        _hop(body.ssh_proxy, body.ssh_proxy_private_key, project_key),
        SshHop(ssh_host, body.ssh_port, project_key),
    )
    return SshTunnel(tuple(hop for hop in hops if hop is not None), body.app_port)


def _hop(proxy: SshProxyBody | None, key: str | None, project_key: Secret | None) -> SshHop | None:
    if proxy is None:
        return None
    own = Secret(key) if key else project_key
    return SshHop(f"{proxy.username}@{proxy.hostname}", proxy.port, own)


def _missing(name: str) -> NoReturn:
    raise InvalidBodyError(
        [{"type": "missing", "loc": ["body", name], "msg": "Field required", "input": {}}]
    )


def _address(body: RegisterReplicaBody) -> Address:
    try:
        if body.socket is not None:
            address: Address = parse_socket_path(body.socket.removeprefix("unix:"))
        else:
            assert body.url is not None
            address = parse_replica_url(body.url)
    except ValueError as error:
        raise RefusedError(f"{'socket' if body.socket is not None else 'url'}: {error}") from error
    if isinstance(address, UnixAddress):
        _check_socket(address.path)
    return address


def _internal_url(body: RegisterReplicaBody) -> str:
    assert body.internal_ip
    if body.app_port is None:
        raise RefusedError("a replica with `internal_ip` needs its `app_port`")
    host = f"[{body.internal_ip}]" if ":" in body.internal_ip else body.internal_ip
    return f"http://{host}:{body.app_port}"


def _check_socket(path: str) -> None:
    """A typing error is found now, not by the first request."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise RefusedError(f"there is no socket {path}: start the replica first") from None
    except OSError as error:
        raise RefusedError(f"socket {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise RefusedError(f"{path} is not a socket")
