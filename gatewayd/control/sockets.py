"""The addresses of the configuration, bound once, before any process exists.

Owns: public, admin and metrics sockets for the life of control. Does not own: how one is bound
(net.listeners), how a predecessor's come here (net.handover), who accepts (workers; control.api).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import replace

from gatewayd.config.model import Config, ListenAddress
from gatewayd.core.model import Address, UnixAddress
from gatewayd.net.handover import Inherited, Open, Use
from gatewayd.net.listeners import (
    Listener,
    ListenError,
    adopt_passed,
    adopt_slots,
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
        # Whether files of Unix sockets go with us, or belong to a predecessor or a successor.
        self.owns_files = True
        self._names: dict[Use, str] = {}
        self._files: list[str] = []
        self._passed: dict[str, list[socket.socket]] = {}

    def __repr__(self) -> str:
        return f"<Sockets {', '.join(str(listener.address) for listener in self.public)}>"

    def bind(
        self,
        config: Config,
        environ: Mapping[str, str],
        *,
        takeover: bool,
        inherited: Inherited | None = None,
    ) -> None:
        """All or none. Raises ListenError. What a predecessor had open is `inherited`."""
        self._passed = systemd_sockets(environ, os.getpid())
        if inherited is not None:
            self.owns_files, takeover = False, True
        try:
            for listen in config.listen.http:
                self._bind_public(listen, config.workers, takeover, inherited, tls=False)
            for listen in config.listen.https:
                self._bind_public(listen, config.workers, takeover, inherited, tls=True)
            self.admin = self._bind_one("admin", config.listen.admin, _ADMIN_MODE, inherited)
            if config.listen.metrics is not None:
                metrics = config.listen.metrics
                self.metrics = self._bind_one("metrics", metrics, _PUBLIC_MODE, inherited)
        except BaseException:
            self.close()
            raise

    def _bind_public(
        self,
        listen: ListenAddress,
        workers: int,
        takeover: bool,
        inherited: Inherited | None,
        *,
        tls: bool,
    ) -> None:
        name = str(listen)
        if inherited is not None and (sockets := inherited.take("public", name)):
            listeners = [adopt_slots(name, sockets, workers)]
            # Of one name there are as many as systemd has passed.
            while listen.address is None and (sockets := inherited.take("public", name)):
                listeners.append(adopt_slots(name, sockets, workers))
        elif listen.address is None:
            assert listen.fd_name is not None
            listeners = adopt_passed(listen.fd_name, self._passed)
        else:
            listeners = [
                bind_slots(name, listen.address, workers, mode=_PUBLIC_MODE, takeover=takeover)
            ]
        self.public += [replace(listener, tls=tls) for listener in listeners]
        self._remember(listen.address)

    def _bind_one(
        self, use: Use, listen: Address | ListenAddress, mode: int, inherited: Inherited | None
    ) -> socket.socket:
        name = self._names[use] = str(listen)
        if inherited is not None and (sockets := inherited.take(use, name)):
            (sock,) = sockets
        elif isinstance(listen, ListenAddress):
            assert listen.fd_name is not None
            listeners = adopt_passed(listen.fd_name, self._passed)
            if len(listeners) > 1:
                raise ListenError(f"{name}: {len(listeners)} sockets have that name, one is needed")
            (sock,) = listeners[0].sockets
        else:
            sock = bind_one(listen, mode=mode)
        if not isinstance(listen, ListenAddress):
            self._remember(listen)
        return sock

    def opened(self) -> list[Open]:
        """All of them, for a successor."""
        alone: list[tuple[Use, socket.socket | None]] = [
            ("admin", self.admin),
            ("metrics", self.metrics),
        ]
        return [
            *(Open("public", listener.name, listener.sockets) for listener in self.public),
            *(Open(use, self._names[use], (sock,)) for use, sock in alone if sock is not None),
        ]

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
            if self.owns_files:
                remove_socket_file(path)
        self._files.clear()

    def _remember(self, address: Address | None) -> None:
        if isinstance(address, UnixAddress):
            self._files.append(address.path)
