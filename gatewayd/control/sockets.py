"""The addresses of the configuration, bound once, before any process exists.

Owns: public, admin and metrics sockets for the life of control. Does not own: how one is bound
(net.listeners), who accepts (workers; control.api).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import replace

from gatewayd.config.model import Config
from gatewayd.core.model import Address, UnixAddress
from gatewayd.net.listeners import (
    Listener,
    adopt_passed,
    bind_one,
    bind_slots,
    bound_address,
    remove_socket_file,
    systemd_sockets,
)

_PUBLIC_MODE = 0o666
_ADMIN_MODE = 0o660


class Sockets:
    def __init__(self) -> None:
        self.public: list[Listener] = []
        self.admin: socket.socket | None = None
        self.metrics: socket.socket | None = None
        self._files: list[str] = []

    def __repr__(self) -> str:
        return f"<Sockets {', '.join(str(listener.address) for listener in self.public)}>"

    def bind(self, config: Config, environ: Mapping[str, str], *, takeover: bool) -> None:
        """All or none. Raises ListenError."""
        passed = systemd_sockets(environ, os.getpid())
        try:
            addresses = [(address, False) for address in config.listen.http]
            for listen, tls in (*addresses, *((address, True) for address in config.listen.https)):
                if listen.address is None:
                    assert listen.fd_name is not None
                    listener = adopt_passed(listen.fd_name, passed)
                else:
                    listener = bind_slots(
                        str(listen),
                        listen.address,
                        config.workers,
                        mode=_PUBLIC_MODE,
                        takeover=takeover,
                    )
                    self._remember(listen.address)
                self.public.append(replace(listener, tls=tls))
            self.admin = bind_one(config.listen.admin, mode=_ADMIN_MODE)
            self._remember(config.listen.admin)
            if config.listen.metrics is not None:
                self.metrics = bind_one(config.listen.metrics, mode=_PUBLIC_MODE)
                self._remember(config.listen.metrics)
        except BaseException:
            self.close()
            raise

    @property
    def admin_address(self) -> Address | None:
        return None if self.admin is None else bound_address(self.admin)

    @property
    def metrics_address(self) -> Address | None:
        return None if self.metrics is None else bound_address(self.metrics)

    def close_public(self) -> None:
        """From now on only the workers hold them: what they close is closed."""
        closed, self.public = self.public, []
        for listener in closed:
            listener.close()

    def close(self) -> None:
        self.close_public()
        for sock in (self.admin, self.metrics):
            if sock is not None:
                sock.close()
        for path in self._files:
            remove_socket_file(path)
        self._files.clear()

    def _remember(self, address: Address) -> None:
        if isinstance(address, UnixAddress):
            self._files.append(address.path)
