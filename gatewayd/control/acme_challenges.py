"""Proving to an ACME authority that a name is ours.

Owns: what workers show meanwhile (http-01, tls-alpn-01), calling the hook for dns-01. Does not own:
delivery to workers (control.publisher), the order that a proof is for (control.acme_server).

The hook is called as `HOOK add|remove DOMAIN NAME VALUE`: NAME is the TXT record, VALUE what it is
to hold. `add` returns once the record is to be seen; another status than 0 is a failure.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from gatewayd.control.acme_keys import dns_value, proof_pair
from gatewayd.control.acme_wire import AcmeError
from gatewayd.control.publisher import Publisher
from gatewayd.core.messages import CertificatePair

_log = logging.getLogger(__name__)

HTTP, ALPN, DNS = "http-01", "tls-alpn-01", "dns-01"
_HOOK_TIMEOUT_S: Final = 120.0
_WORDS_MAX: Final = 300


class Proofs:
    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._http: dict[str, str] = {}  # token -> key authorization
        self._alpn: dict[str, CertificatePair] = {}

    def __repr__(self) -> str:
        return f"<Proofs {len(self._http)} by HTTP, {len(self._alpn)} by TLS>"

    @asynccontextmanager
    async def shown(
        self, kind: str, domain: str, token: str, authorization: str, hook: str | None
    ) -> AsyncIterator[None]:
        """Whoever asks any worker finds the proof until this ends."""
        if kind == DNS:
            assert hook is not None
            asked = (domain, f"_acme-challenge.{domain}", dns_value(authorization))
            try:
                # Also when adding failed half-way: a hook may have begun.
                await call_hook(hook, "add", *asked)
                yield
            finally:
                await asyncio.shield(_forget(hook, *asked))
            return
        if kind == HTTP:
            self._http[token] = authorization
        else:
            self._alpn[domain] = proof_pair(domain, authorization)
        try:
            await self._publish()
            yield
        finally:
            self._http.pop(token, None)
            if kind == ALPN:
                self._alpn.pop(domain, None)
            await asyncio.shield(self._publish())

    async def _publish(self) -> None:
        await self._publisher.challenge(dict(self._http), dict(self._alpn))


async def _forget(hook: str, *asked: str) -> None:
    try:
        await call_hook(hook, "remove", *asked)
    except AcmeError as error:
        _log.warning("a record of dns-01 may be left: %s", error)


async def call_hook(hook: str, action: str, *asked: str, timeout: float = _HOOK_TIMEOUT_S) -> None:
    """Raises AcmeError with the last line that the hook said."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(hook, action, *asked),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise AcmeError(f"dns_hook {hook} cannot be run: {error.strerror}") from error
    said = b""
    try:
        async with asyncio.timeout(timeout):
            _, said = await process.communicate()
    except TimeoutError:
        raise AcmeError(
            f"dns_hook {hook} {action} {asked[0]} took more than {timeout:g} s"
        ) from None
    finally:
        if process.returncode is None:
            # With what it has started: nobody reads its pipe any more.
            with suppress(ProcessLookupError):
                _kill_group(process.pid)
            await process.wait()
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise AcmeError(
            f"dns_hook {hook} {action} {asked[0]} ended with status {process.returncode} and said: "
            f"{lines[-1][:_WORDS_MAX]}"
        )


def _kill_group(pid: int) -> None:
    import os

    os.killpg(pid, signal.SIGKILL)
