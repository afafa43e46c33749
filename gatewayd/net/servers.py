"""HTTP to whichever server listens behind the sockets of a directory, several and dead ones too.

Owns: finding a socket that answers, connections kept to it, putting away sockets that nobody
listens on any more. Does not own: what is asked (net.authority).

Each server process makes such a socket and may leave it behind when it dies. Servers are equal: it
does not matter which one answers, so the first answer is taken.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aiohttp import ClientSession

_log = logging.getLogger("gatewayd.auth")

_NEXT_AFTER_S: Final = 1.0  # a server that has not answered by then is not the only one asked
_DEAD_AFTER_S: Final = 120.0
_KEEPALIVE_S: Final = 4.0  # uvicorn, behind these sockets, ends idle connections after five


class NoServerError(ConnectionError):
    """None of the sockets leads to a server that answers."""


@dataclass(frozen=True, slots=True)
class _Found:
    path: str
    inode: int  # a socket made anew under the same name is another one


class Servers:
    def __init__(
        self,
        directory: str,
        *,
        chance: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._chance = chance or random.Random()  # noqa: S311  (spreads, guards nothing)
        self._clock = clock
        self._sessions: dict[_Found, ClientSession] = {}
        self._refusing: dict[_Found, float] = {}  # since when

    def __repr__(self) -> str:
        return f"<Servers {self._directory} [{len(self._sessions)} known]>"

    async def post(self, path: str, headers: dict[str, str]) -> int:
        """The status of the first answer. Raises NoServerError; how long it may take is the
        caller's to bound."""
        found = await asyncio.to_thread(_sockets, self._directory)
        await self._forget_others(found)
        self._chance.shuffle(found)
        asking: set[asyncio.Task[int]] = set()
        try:
            while found or asking:
                if found:
                    asking.add(asyncio.ensure_future(self._post(found.pop(), path, headers)))
                done, asking = await asyncio.wait(
                    asking,
                    timeout=_NEXT_AFTER_S if found else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    if task.exception() is None:
                        return task.result()
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        raise NoServerError(f"no server is connected in {self._directory}")

    async def aclose(self) -> None:
        await self._forget_others([])

    async def _post(self, at: _Found, path: str, headers: dict[str, str]) -> int:
        from aiohttp import ClientConnectorError, ServerDisconnectedError

        session = self._sessions.get(at)
        if session is None:
            session = self._sessions[at] = http_session(at.path, keepalive_s=_KEEPALIVE_S)
        try:
            try:
                status = await _status(session, path, headers)
            except ServerDisconnectedError:  # perhaps only a kept connection that was old
                status = await _status(session, path, headers)
        except ClientConnectorError as error:
            if isinstance(error.os_error, ConnectionRefusedError):
                await self._refused(at)
            raise
        self._refusing.pop(at, None)
        return status

    async def _refused(self, at: _Found) -> None:
        """Nobody listens. A server that restarts makes its socket anew, so one that is dead for
        long will not live again."""
        now = self._clock()
        if now - self._refusing.setdefault(at, now) < _DEAD_AFTER_S:
            return
        if await asyncio.to_thread(_unlink, at):
            _log.warning("%s has refused for %g s: removed", at.path, _DEAD_AFTER_S)

    async def _forget_others(self, found: list[_Found]) -> None:
        present = set(found)
        for at in [at for at in self._sessions if at not in present]:
            await self._sessions.pop(at).close()
        for at in [at for at in self._refusing if at not in present]:
            del self._refusing[at]


async def _status(session: ClientSession, path: str, headers: dict[str, str]) -> int:
    url = f"http://server{path}"
    async with session.post(url, headers=headers, allow_redirects=False) as response:
        return response.status


def _sockets(directory: str) -> list[_Found]:
    """Only sockets, only there, only `*.sock`: whatever else lies there is not touched."""
    try:
        with os.scandir(directory) as entries:
            return [
                _Found(entry.path, entry.inode())
                for entry in entries
                if entry.name.endswith(".sock")
                and stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
            ]
    except OSError:  # not made yet, or gone since; the servers make it
        return []


def _unlink(at: _Found) -> bool:
    try:
        if os.lstat(at.path).st_ino != at.inode:
            return False
        os.unlink(at.path)
    except OSError:
        return False
    return True


def http_session(unix_path: str | None, *, keepalive_s: float = 15.0) -> ClientSession:
    # Imported where it is first needed: a worker without an authority never loads the client.
    from aiohttp import ClientSession, DummyCookieJar, TCPConnector, UnixConnector

    connector = (
        UnixConnector(unix_path, keepalive_timeout=keepalive_s)
        if unix_path
        else TCPConnector(limit=100, keepalive_timeout=keepalive_s)
    )
    return ClientSession(connector=connector, cookie_jar=DummyCookieJar(), trust_env=False)
