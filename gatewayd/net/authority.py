"""Asking somebody else whether a token may use a service, and remembering the answer.

Owns: the cache, one question at a time per scope and token, what is said meanwhile. Does not own:
reading the token, how long an answer counts (core.auth), finding a server that lives (net.servers).

The scope of an answer is the service for `type: http`; a dstack server judges projects, so that
services of one project share its answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from gatewayd.core.auth import Judged, Verdict, token_digest
from gatewayd.core.model import Auth, DstackAuth, HttpAuth, UnixAddress
from gatewayd.net.servers import Servers, http_session

if TYPE_CHECKING:
    from aiohttp import ClientSession

_log = logging.getLogger("gatewayd.auth")
_MAX_JUDGED: Final = 20_000  # tokens remembered of each verdict; then the oldest are forgotten
_MAX_ASKING: Final = 200  # questions under way; more than that is an authority that hangs

_Key = tuple[str, bytes]  # scope, digest of the token


class Authority:
    """One per process and configuration. Services are named by `Service.key`."""

    def __init__(self, auth: HttpAuth | DstackAuth) -> None:
        self.auth = auth
        self._by_project = isinstance(auth, DstackAuth)
        # Apart, so that a flood of tokens that are none pushes out nobody's good one.
        self._yes: OrderedDict[_Key, Judged] = OrderedDict()
        self._no: OrderedDict[_Key, Judged] = OrderedDict()
        self._asking: dict[_Key, asyncio.Task[Verdict]] = {}
        self._session: ClientSession | None = None
        self._said: set[str] = set()  # in the log, since it answered last
        self._servers = (
            Servers(auth.server_connections_dir) if isinstance(auth, DstackAuth) else None
        )

    def __repr__(self) -> str:
        known = len(self._yes) + len(self._no)
        return f"<Authority {known} known, {len(self._asking)} asking>"

    def known(self, service: str, token: bytes) -> Verdict:
        """What is remembered, without asking: UNKNOWN when it must be asked (again)."""
        key = self._key(service, token)
        judged = self._yes.get(key) or self._no.get(key)
        return Verdict.UNKNOWN if judged is None else judged.verdict_at(time.monotonic())

    async def ask(
        self, service: str, token: bytes, *, method: str = "GET", uri: str = "/", host: str = ""
    ) -> Verdict:
        """Ask, or wait for whoever asks already; a waiter that leaves cancels nobody's question.
        While the authority fails to answer, a token that was good waits for it once, not again
        with every request."""
        key = self._key(service, token)
        judged = self._yes.get(key)
        stale = Verdict.UNKNOWN if judged is None else judged.when_unknown(time.monotonic())
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= _MAX_ASKING:
                return stale
            question = self._question(key, service, token, method, uri, host)
            task = asyncio.get_running_loop().create_task(question)
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        if judged is not None and judged.failed and stale is Verdict.STALE:
            return stale
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
        if self._servers is not None:
            await self._servers.aclose()

    def _key(self, service: str, token: bytes) -> _Key:
        scope = service.partition("/")[0] if self._by_project else service
        return scope, token_digest(token)

    async def _question(
        self, key: _Key, service: str, token: bytes, method: str, uri: str, host: str
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
                        "X-Gatewayd-Service": service,
                    }
                    status = await self._http(auth, headers)
                else:
                    assert self._servers is not None
                    status = await self._servers.post(f"/api/projects/{key[0]}/get", headers)
        except Exception as error:
            # Whatever keeps the authority from answering is one thing to the client: unknown.
            return self._unknown(key, f"did not answer: {str(error) or type(error).__name__}")
        if 200 <= status < 300:
            return self._remember(key, Verdict.YES)
        if status in (401, 403):
            return self._remember(key, Verdict.NO)
        return self._unknown(key, f"answered {status}, which says neither yes nor no")

    def _unknown(self, key: _Key, why: str) -> Verdict:
        if why not in self._said:  # once until it answers again, not for every request
            self._said.add(why)
            _log.warning("the authority %s", why)
        judged = self._yes.get(key)
        return Verdict.UNKNOWN if judged is None else judged.not_answered(time.monotonic())

    def _remember(self, key: _Key, verdict: Verdict) -> Verdict:
        auth = self.auth
        if self._said:
            self._said.clear()
            _log.info("the authority answers again")
        self._yes.pop(key, None)
        self._no.pop(key, None)
        kept = self._yes if verdict is Verdict.YES else self._no
        kept[key] = Judged(verdict, time.monotonic(), auth.cache, auth.stale_if_error)
        if len(kept) > _MAX_JUDGED:
            kept.popitem(last=False)
        return verdict

    async def _http(self, auth: HttpAuth, headers: dict[str, str]) -> int:
        if self._session is None:
            self._session = http_session(
                auth.address.path if isinstance(auth.address, UnixAddress) else None
            )
        base = "http://authority" if isinstance(auth.address, UnixAddress) else (
            f"http://{auth.address}"
        )  # fmt: skip
        async with self._session.get(
            base + auth.path, headers=headers, allow_redirects=False
        ) as response:
            return response.status


def authority_for(auth: Auth | None) -> Authority | None:
    return Authority(auth) if isinstance(auth, HttpAuth | DstackAuth) else None
