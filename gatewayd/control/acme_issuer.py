"""A certificate from whichever authority gives one.

Owns: the order of authorities and of ways to prove a name, how many orders run at a time, leaving
alone who asked for it. Does not own: an order (control.acme_server), when (control.renewals).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from gatewayd.control.acme_challenges import DNS, Proofs
from gatewayd.control.acme_keys import from_pem, make_key, to_pem
from gatewayd.control.acme_server import AcmeServer, ProofError, Window
from gatewayd.control.acme_store import AcmeStore, Issued
from gatewayd.control.acme_wire import AcmeError, Wire
from gatewayd.core.acme import Problem, in_vain, ways
from gatewayd.core.certificate import AcmeCertificate

_log = logging.getLogger(__name__)

_AT_A_TIME: Final = 6
ORDER_TIMEOUT_S: Final = 180.0


class Issuer:
    def __init__(
        self,
        proofs: Proofs,
        store: AcmeStore,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proofs = proofs
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._settings: AcmeCertificate | None = None
        self._servers: dict[str, AcmeServer] = {}
        self._few = asyncio.Semaphore(_AT_A_TIME)
        self._until: dict[tuple[str, str], float] = {}  # (authority, name): not before
        self._unproven: dict[tuple[str, str], int] = {}  # the same: failed tries in a row

    def __repr__(self) -> str:
        return f"<Issuer {', '.join(self._servers)}>"

    async def aclose(self) -> None:
        servers, self._servers = self._servers, {}
        for server in servers.values():
            await server.aclose()

    async def follow(self, settings: AcmeCertificate) -> bool:
        """Whether anything is new."""
        if settings == self._settings:
            return False
        await self.aclose()
        self._settings = settings
        self._until.clear()  # another account has other limits
        self._unproven.clear()
        return True

    async def issue(self, name: str, before: Issued | None, *, every_way: bool) -> Issued:
        """From the first authority that gives one. AcmeError tells what was wrong with each.
        `every_way`: whatever has failed may be mended."""
        async with self._few:
            settings = self._settings
            assert settings is not None
            faults: list[AcmeError] = []
            for url in settings.servers:
                replaces = before.chain if before is not None and before.server == url else None
                try:
                    return await self._from(url, name, replaces, every_way)
                except AcmeError as error:
                    faults.append(error)
                    if url != settings.servers[-1]:
                        _log.warning(
                            "%s gives no certificate for %s, the next authority is asked: %s",
                            *(url, name, error),
                        )
                    if error.retry_after is not None:
                        self._until[url, name] = self._monotonic() + error.retry_after
        raise _all(settings.servers, faults)

    async def _from(self, url: str, name: str, replaces: bytes | None, every_way: bool) -> Issued:
        left = self._until.get((url, name), 0.0) - self._monotonic()
        if left > 0:
            problem = Problem("rateLimited", "it asked not to be asked before", 429, left)
            raise AcmeError(problem.sentence(), problem)
        key = make_key()
        faults: list[str] = []
        last: ProofError | None = None
        tried = ""
        unproven = self._unproven.get((url, name), 0)
        for kind in ways(self._kinds(name), 0 if every_way else unproven):
            if last is not None and in_vain(kind, tried, last.problem):
                continue
            tried = kind
            try:
                async with asyncio.timeout(ORDER_TIMEOUT_S):
                    chain = await self._server(url).issue(name, kind, key, replaces)
                self._unproven.pop((url, name), None)
                return Issued(name, url, chain, to_pem(key))
            except ProofError as error:
                faults.append(str(error))
                last = error
            except TimeoutError:
                raise AcmeError(f"no certificate within {ORDER_TIMEOUT_S:g} s") from None
        self._unproven[url, name] = unproven + 1
        raise AcmeError("; ".join(faults), None if last is None else last.problem)

    def _kinds(self, name: str) -> Sequence[str]:
        assert self._settings is not None
        kinds = [k for k in self._settings.challenges if k != DNS or self._settings.dns_hook]
        if name.startswith("*."):
            kinds = [DNS] if self._settings.dns_hook else []
            if not kinds:
                raise AcmeError("a wildcard is proven by dns-01 only: set `dns_hook`")
        return kinds

    async def revoke(self, issued: Issued, reason: int) -> None:
        async with asyncio.timeout(ORDER_TIMEOUT_S):
            key = from_pem(issued.key)
            await self._server(issued.server).revoke(issued.chain, key, reason)

    async def window(self, issued: Issued) -> Window | None:
        async with asyncio.timeout(ORDER_TIMEOUT_S):
            return await self._server(issued.server).window(issued.chain)

    def _server(self, url: str) -> AcmeServer:
        assert self._settings is not None
        server = self._servers.get(url)
        if server is None:
            wire = Wire(url, self._settings.ca_file, self._clock)
            server = AcmeServer(wire, self._settings, self._store, self._proofs)
            self._servers[url] = server
        return server


def _all(servers: Sequence[str], faults: list[AcmeError]) -> AcmeError:
    if len(faults) == 1:
        return faults[0]
    text = "; ".join(f"{url}: {error}" for url, error in zip(servers, faults, strict=True))
    waits = [error.retry_after for error in faults]
    known = [wait for wait in waits if wait is not None]
    # Whoever asks again soonest is worth another try, unless each has said when.
    wait = min(known) if len(known) == len(waits) else None
    first = faults[0].problem
    return AcmeError(text, Problem("" if first is None else first.kind, text, 0, wait))
