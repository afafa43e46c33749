"""The world outside of the machine, as far as a test lets a gateway see it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Trap:
    """Stands for the outside world: every name and every proxy leads here, and nobody may come."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.1)
        self.port = self._server.getsockname()[1]
        self.caught: list[bytes] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(0.5)
                try:
                    self.caught.append(connection.recv(1000))
                except OSError as error:
                    self.caught.append(repr(error).encode())

    def close(self) -> None:
        self._over.set()
        self._thread.join(5)
        self._server.close()


@contextmanager
def trap() -> Iterator[Trap]:
    held = Trap()
    try:
        yield held
    finally:
        held.close()
