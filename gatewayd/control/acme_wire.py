"""Asking an ACME authority over HTTPS: its directory, nonces, signed requests, refusals.

Owns: RFC 8555, 6 and 7.1.1, 7.2. Does not own: what is asked (control.acme_server), signing
(control.acme_keys).
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from gatewayd import __version__
from gatewayd.control.acme_keys import Key, jwk, sign
from gatewayd.core.acme import Problem, read_date, read_problem, read_retry_after

_log = logging.getLogger(__name__)

_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, connect=10)
_BODY_MAX: Final = 1024 * 1024
_NONCES_MAX: Final = 16
_NONCE_TRIES: Final = 12
_SKEW_S: Final = 300.0
_DIRECTORY_S: Final = 3600.0
_NEEDED: Final = ("newNonce", "newAccount", "newOrder")


class AcmeError(Exception):
    """The authority refused, or cannot be asked; the text is for an operator."""

    def __init__(self, text: str, problem: Problem | None = None) -> None:
        super().__init__(text)
        self.problem = problem

    @property
    def kind(self) -> str:
        return "" if self.problem is None else self.problem.kind

    @property
    def retry_after(self) -> float | None:
        return None if self.problem is None else self.problem.retry_after


@dataclass(frozen=True, slots=True)
class Answer:
    body: bytes
    location: str | None
    retry_after: float | None

    def table(self) -> dict[str, Any]:
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise AcmeError("the authority answered something else than JSON")
        return found


class Wire:
    """One authority. `ca_file` is what its own HTTPS is checked against, None the system's."""

    def __init__(
        self, directory: str, ca_file: str | None, clock: Callable[[], float] = time.time
    ) -> None:
        self.directory_url = directory
        self._ca_file = ca_file
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._directory: dict[str, Any] | None = None
        self._directory_until = 0.0
        self._reading = asyncio.Lock()
        self._nonces: list[str] = []
        self._told_skew = False

    def __repr__(self) -> str:
        return f"<Wire {self.directory_url}>"

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def directory(self) -> Mapping[str, Any]:
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if self._directory is None or now >= self._directory_until:
                found = (await self._ask("GET", self.directory_url)).table()
                if not all(isinstance(found.get(key), str) for key in _NEEDED):
                    raise AcmeError(f"{self.directory_url} is no ACME directory")
                self._directory, self._directory_until = found, now + _DIRECTORY_S
            return self._directory

    async def url(self, key: str) -> str:
        """Of one of the directory's resources."""
        found = (await self.directory()).get(key)
        if not isinstance(found, str):
            raise AcmeError(f"the authority has no `{key}`")
        return found

    async def get(self, url: str) -> Answer:
        return await self._ask("GET", url)

    async def post(
        self, url: str, payload: Mapping[str, Any] | None, key: Key, account: str | None
    ) -> Answer:
        """Signed; without a payload it is POST-as-GET. `account` is None until there is one."""
        body = b"" if payload is None else json.dumps(payload).encode()
        by = {"jwk": jwk(key)} if account is None else {"kid": account}
        for tried in range(_NONCE_TRIES):
            header = {**by, "nonce": await self._nonce(), "url": url}
            try:
                return await self._ask("POST", url, sign(key, header, body))
            except AcmeError as error:
                # The refusal brought a fresh nonce along (6.5).
                if error.kind != "badNonce" or tried == _NONCE_TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    async def _nonce(self) -> str:
        if not self._nonces:
            await self._ask("HEAD", await self.url("newNonce"))
        if not self._nonces:
            raise AcmeError("the authority gives no nonce")
        return self._nonces.pop()

    async def _ask(self, method: str, url: str, body: bytes | None = None) -> Answer:
        session = await self._opened()
        headers = {} if body is None else {"Content-Type": "application/jose+json"}
        try:
            async with session.request(
                method, url, data=body, headers=headers, allow_redirects=method == "GET"
            ) as response:
                content = await response.content.read(_BODY_MAX + 1)
                while len(content) <= _BODY_MAX and (more := await response.content.read(65536)):
                    content += more
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise AcmeError(f"{self.directory_url} cannot be asked: {_why(error)}") from error
        if len(content) > _BODY_MAX:
            raise AcmeError(f"{url} answered more than {_BODY_MAX // 1024} KiB")
        # The oldest go first: authorities forget them.
        if nonce := response.headers.get("Replay-Nonce"):
            self._nonces = [*self._nonces, nonce][-_NONCES_MAX:]
        self._compare_clocks(response.headers.get("Date"))
        retry_after = read_retry_after(response.headers.get("Retry-After"), self._clock())
        if response.status >= 300:
            problem = read_problem(_json(content), response.status, retry_after)
            raise AcmeError(problem.sentence(), problem)
        return Answer(content, response.headers.get("Location"), retry_after)

    async def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            try:
                context = await asyncio.to_thread(ssl.create_default_context, cafile=self._ca_file)
            except (OSError, ssl.SSLError) as error:
                raise AcmeError(f"ca_file {self._ca_file} cannot be read: {error}") from error
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=context, limit=8),
                    timeout=_TIMEOUT,
                    headers={"User-Agent": f"gatewayd/{__version__}"},
                    cookie_jar=aiohttp.DummyCookieJar(),
                )
        return self._session

    def _compare_clocks(self, date: str | None) -> None:
        """Certificates begin and end by clocks: say once that ours is not the authority's."""
        theirs = None if date is None else read_date(date)
        if theirs is None:
            return
        skew = self._clock() - theirs
        if abs(skew) >= _SKEW_S and not self._told_skew:
            way = "ahead of" if skew > 0 else "behind"
            _log.warning(
                "the clock of this machine is %.0f s %s that of %s: set it, or certificates look "
                "too old or too new",
                *(abs(skew), way, self.directory_url),
            )
        self._told_skew = abs(skew) >= _SKEW_S


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its own certificate is not trusted, see `ca_file` ({error.certificate_error})"
    return str(error) or type(error).__name__
