"""A client of a running gateway's admin address.

Owns: finding the address, one call at a time, saying why it failed. Does not own: what is called.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
from typing import Any, Final

from gatewayd.config.values import parse_address
from gatewayd.core.model import Address, TcpAddress, UnixAddress

DEFAULT: Final = TcpAddress("127.0.0.1", 8000)
TIMEOUT_S: Final = 60.0


class AdminError(Exception):
    """The gateway could not be asked, or refused; the text is for the operator."""

    def __init__(self, text: str, *, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status  # None: not reached


def admin_address(options: argparse.Namespace) -> Address:
    """`--admin`, else GATEWAYD_ADMIN, else the file's, else the usual one. Raises AdminError."""
    text = options.admin or os.environ.get("GATEWAYD_ADMIN")
    if text:
        try:
            return parse_address(text)
        except ValueError as error:
            raise AdminError(f"admin address {text}: {error}") from error
    if not options.config:
        return DEFAULT
    from gatewayd.config.errors import ConfigError
    from gatewayd.config.load import load_config

    try:
        address = load_config(options.config, os.environ).listen.admin
    except ConfigError as error:
        raise AdminError(f"{error}\n--admin says where the gateway is, without its file") from error
    if not isinstance(address, TcpAddress | UnixAddress):
        raise AdminError(f"listen.admin is {address}, a socket of systemd's: --admin says where")
    return address


class Admin:
    def __init__(self, address: Address) -> None:
        if isinstance(address, TcpAddress) and address.host in ("0.0.0.0", "::"):
            address = TcpAddress("127.0.0.1" if address.host == "0.0.0.0" else "::1", address.port)
        self.address = address

    def __repr__(self) -> str:
        return f"<Admin {self.address}>"

    def get(self, path: str) -> Any:
        return self._call("GET", path, None, TIMEOUT_S)

    def post(self, path: str, body: object = None, *, timeout: float = TIMEOUT_S) -> Any:
        return self._call("POST", path, body, timeout)

    def _call(self, method: str, path: str, body: object, timeout: float) -> Any:
        connection = self._connection(timeout)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.request(
                method, path, json.dumps(body) if body is not None else None, headers
            )
            response = connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise AdminError(
                f"cannot reach a gateway at {self.address}: {why}; "
                "is it running? --admin, GATEWAYD_ADMIN or -c say where"
            ) from error
        finally:
            connection.close()
        try:
            answer = json.loads(raw)
        except ValueError as error:
            raise AdminError(
                f"what answers at {self.address} is not a gateway (status {response.status})",
                status=response.status,
            ) from error
        if response.status != 200:
            raise AdminError(_detail(answer), status=response.status)
        return answer

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if isinstance(self.address, TcpAddress):
            return http.client.HTTPConnection(self.address.host, self.address.port, timeout=timeout)
        return _UnixConnection(self.address, timeout)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, address: UnixAddress, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._address.path)


def _detail(answer: object) -> str:
    """The words of an error body: a text, or a list of faults with their places."""
    detail = answer.get("detail") if isinstance(answer, dict) else answer
    if isinstance(detail, list):
        return "\n".join(
            f"{'.'.join(map(str, fault.get('loc', ())))}: {fault.get('msg')}" for fault in detail
        )
    return str(detail)
