"""Asking somebody else whether a token may use a service, and remembering the answer.

Owns: the question over HTTP, its cache, one question at a time per (service, token).
Does not own: reading the token, the meaning of a stale answer (core.auth).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gatewayd.core.auth import Judged, Verdict, token_digest
from gatewayd.core.model import Auth, DstackAuth, HttpAuth, UnixAddress

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from gatewayd.proxy.exchange import Exchange

_log = logging.getLogger("gatewayd.auth")
_MAX_JUDGED: Final = 20_000  # tokens remembered; beyond it the longest unused are forgotten
_MAX_ASKING: Final = 200  # questions under way; more than that is an authority that hangs


class Authority:
    """One per worker and configuration. Times are monotonic seconds."""

    def __init__(self, auth: HttpAuth | DstackAuth) -> None:
        self.auth = auth
        self._judged: OrderedDict[tuple[str, bytes], Judged] = OrderedDict()
        self._asking: dict[tuple[str, bytes], asyncio.Task[Verdict]] = {}
        self._session: ClientSession | None = None

    def __repr__(self) -> str:
        return f"<Authority {len(self._judged)} known, {len(self._asking)} asking>"

    def known(self, service: str, token: bytes) -> Verdict:
        """What is remembered, without asking: UNKNOWN when it must be asked (again)."""
        judged = self._judged.get((service, token_digest(token)))
        if judged is None or not judged.fresh(time.monotonic()):
            return Verdict.UNKNOWN
        return judged.verdict

    async def ask(self, service: str, project: str, token: bytes, exchange: Exchange) -> Verdict:
        """Ask, or wait for whoever asks already; a waiter that leaves cancels nobody's question."""
        key = (service, token_digest(token))
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= _MAX_ASKING:
                return self._stale(key)
            task = asyncio.get_running_loop().create_task(
                self._question(key, project, token, exchange.method, exchange.target, exchange.host)
            )
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(task)

    async def retire(self) -> None:
        """Another configuration took its place: who waits for its word still gets it."""
        await asyncio.sleep(0)  # an exchange of this moment may be about to ask
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await self.aclose()

    async def aclose(self) -> None:
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _question(
        self, key: tuple[str, bytes], project: str, token: bytes, method: str, uri: str, host: str
    ) -> Verdict:
        headers = {"Authorization": f"Bearer {token.decode('latin-1')}"}
        auth = self.auth
        try:
            async with asyncio.timeout(auth.timeout):
                if isinstance(auth, HttpAuth):
                    headers |= {
                        "X-Original-Method": method,
                        "X-Original-URI": uri.encode("ascii", "replace").decode(),
                        "X-Original-Host": host,
                        "X-Gatewayd-Service": key[0],
                    }
                    status = await self._http("GET", auth, headers)
                else:
                    status = await self._any_server(auth, project, headers)
        except Exception as error:
            # Whatever keeps the authority from answering is one thing to the client: unknown.
            _log.warning("the authority did not answer: %s", str(error) or type(error).__name__)
            return self._stale(key)
        if 200 <= status < 300:
            return self._remember(key, Verdict.YES)
        if status in (401, 403):
            return self._remember(key, Verdict.NO)
        _log.warning("the authority answered %d, which says neither yes nor no", status)
        return self._stale(key)

    def _stale(self, key: tuple[str, bytes]) -> Verdict:
        judged = self._judged.get(key)
        return Verdict.UNKNOWN if judged is None else judged.when_unknown(time.monotonic())

    def _remember(self, key: tuple[str, bytes], verdict: Verdict) -> Verdict:
        auth = self.auth
        self._judged[key] = Judged(verdict, time.monotonic(), auth.cache, auth.stale_if_error)
        self._judged.move_to_end(key)
        if len(self._judged) > _MAX_JUDGED:
            self._judged.popitem(last=False)
        return verdict

    async def _http(self, method: str, auth: HttpAuth, headers: dict[str, str]) -> int:
        if self._session is None:
            self._session = _session(
                auth.address.path if isinstance(auth.address, UnixAddress) else None
            )
        base = "http://authority" if isinstance(auth.address, UnixAddress) else (
            f"http://{auth.address}"
        )  # fmt: skip
        async with self._session.request(
            method, base + auth.path, headers=headers, allow_redirects=False
        ) as response:
            return response.status

    async def _any_server(self, auth: DstackAuth, project: str, headers: dict[str, str]) -> int:
        """Ask over a random live socket of the directory; the next one when it does not connect."""
        from aiohttp import ClientConnectorError

        sockets = await asyncio.to_thread(_sockets, auth.server_connections_dir)
        random.shuffle(sockets)
        for path in sockets:
            session = _session(path)
            try:
                async with session.post(
                    f"http://server/api/projects/{project}/get",
                    headers=headers,
                    allow_redirects=False,
                ) as response:
                    return response.status
            except ClientConnectorError:
                continue
            finally:
                await session.close()
        raise ConnectionError(f"no server is connected in {auth.server_connections_dir}")


def _sockets(directory: str) -> list[str]:
    return [str(p) for p in Path(directory).glob("*.sock")] if os.path.isdir(directory) else []


def _session(unix_path: str | None) -> ClientSession:
    # Imported where it is first needed: a worker without an authority never loads the client.
    from aiohttp import ClientSession, DummyCookieJar, TCPConnector, UnixConnector

    connector = UnixConnector(unix_path) if unix_path else TCPConnector(limit=100)
    return ClientSession(connector=connector, cookie_jar=DummyCookieJar(), trust_env=False)


def authority_for(auth: Auth | None) -> Authority | None:
    return Authority(auth) if isinstance(auth, HttpAuth | DstackAuth) else None
