"""The certificates of the gateway: which there are, and that every worker has them.

Owns: their order, who is told of a change, what status and metrics show. Does not own: files
(control.certificate_files), delivery (control.publisher), handshakes (net.tls).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gatewayd.config.model import Config
from gatewayd.control.publisher import Publisher
from gatewayd.control.state import State
from gatewayd.core.messages import CertificatePair
from gatewayd.core.model import CertificateSource, FileCertificate
from gatewayd.core.names import uncovered

if TYPE_CHECKING:
    from gatewayd.control.certificate_files import CertificateFiles, WatchedFiles

_log = logging.getLogger(__name__)

_LOOK_S: Final = 1.0
_LATE_SHARE: Final = 0.25  # of its lifetime left: whoever renews it should have done so


class CertificateError(Exception):
    """Some names cannot be served by HTTPS; the text says which and why, for an operator."""


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    domains: tuple[str, ...]  # what it is served for
    issuer: str
    not_after: float | None  # Unix seconds; None: there is nothing that could be served
    source: str
    fault: str | None


class Certificates:
    """`follow` at start and after each reload; what changes by itself is told to workers too."""

    def __init__(
        self, state: State, publisher: Publisher, clock: Callable[[], float] = time.time
    ) -> None:
        self._state = state
        self._publisher = publisher
        self._clock = clock
        self._files: CertificateFiles | None = None
        self._config: Config | None = None
        self._published: tuple[tuple[CertificatePair, ...], str | None] = ((), None)
        self._warned: set[tuple[str, float, bool]] = set()
        self._changing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Certificates {len(self._published[0])} pairs>"

    async def follow(self, config: Config) -> None:
        """Returns when every ready worker serves the certificates of this configuration."""
        self._config = config
        sources = [source for source, _ in self._sources()]
        if sources and self._files is None:
            from gatewayd.control.certificate_files import CertificateFiles

            self._files = CertificateFiles()
            self._task = asyncio.create_task(self._watch(), name="certificates")
        if self._files is not None:
            async with self._changing:
                await asyncio.to_thread(self._files.follow, sources, self._clock())
                await self._publish()

    async def ensure(self, names: tuple[str, ...]) -> None:
        """Returns when clients that ask for these names get a certificate. CertificateError."""
        config = self._config
        if config is None or not config.listen.https:
            raise CertificateError("This gateway serves no HTTPS: `listen.https` is not configured")
        if missing := self._missing(names):
            raise CertificateError(
                f"No certificate is for {', '.join(missing)}: add one to the configuration"
            )

    def pairs(self) -> tuple[CertificatePair, ...]:
        """What is published to workers."""
        return self._published[0]

    def status(self) -> list[CertificateStatus]:
        domains = {(pair.chain, pair.key): pair.names for pair in self.pairs()}
        now = self._clock()
        found = []
        for watched in [] if self._files is None else self._files.all():
            good = watched.good
            if good is None:
                found.append(CertificateStatus((), "", None, watched.files.cert, watched.fault))
                continue
            fault = watched.fault or _time_fault(good.not_before, good.not_after, now)
            names = domains.get((good.chain, good.key), ())
            found.append(
                CertificateStatus(names, good.issuer, good.not_after, watched.files.cert, fault)
            )
        return [*found, *self._bare()]

    def _missing(self, names: Iterable[str]) -> list[str]:
        return uncovered({name for pair in self.pairs() for name in pair.names}, names)

    def _bare(self) -> Iterator[CertificateStatus]:
        """Of services that plain HTTP is sent away from, those domains that nobody can be sent to:
        a service of the registry outlives the certificate that it was registered with."""
        for service in self._state.services.values():
            if service.https and (missing := self._missing(service.domains)):
                yield CertificateStatus(
                    tuple(missing), "", None, f"service {service.key}", "no certificate is for it"
                )

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- what is served

    def _sources(self) -> Iterator[tuple[CertificateSource, tuple[str, ...]]]:
        """Each with the domains it is for before others: a service's own before the gateway's."""
        config = self._config
        assert config is not None
        for service in config.services:
            if service.certificate is not None:
                yield service.certificate, service.domains
        if config.certificate is not None:
            yield config.certificate, ()

    def _watched(self) -> Iterator[tuple[WatchedFiles, tuple[str, ...]]]:
        assert self._files is not None
        for source, domains in self._sources():
            for watched in self._files.of(source):
                yield watched, domains

    def _compile(self) -> tuple[tuple[CertificatePair, ...], str | None]:
        """One pair for each certificate; a name that several have is the first one's."""
        owner: dict[str, WatchedFiles] = {}
        for watched, domains in self._watched():
            for domain in domains:
                owner.setdefault(domain, watched)
        for watched, _ in self._watched():
            for name in watched.good.names if watched.good is not None else ():
                owner.setdefault(name, watched)
        names: dict[FileCertificate, list[str]] = {}
        default = None
        pairs = {}
        for name, watched in owner.items():
            if (good := watched.good) is None:
                continue
            names.setdefault(watched.files, []).append(name)
            pairs[watched.files] = CertificatePair(
                tuple(names[watched.files]), good.chain, good.key
            )
            if watched.files.default:
                default = names[watched.files][0]
        return tuple(pairs.values()), default

    async def _publish(self) -> None:
        compiled = self._compile()
        if compiled != self._published:
            self._published = compiled
            await self._publisher.certify(*compiled)

    # --- changes

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                async with self._changing:
                    assert self._files is not None
                    if await asyncio.to_thread(self._files.look, self._clock()):
                        await self._publish()
                self._warn()
            except Exception:
                _log.exception("looking after certificates failed; those there are stay")

    def _warn(self) -> None:
        """Once for each certificate that nobody has renewed in time, and once more at its end."""
        now = self._clock()
        for watched in [] if self._files is None else self._files.all():
            good = watched.good
            if good is None or not (fault := _time_fault(good.not_before, good.not_after, now)):
                continue
            key = (watched.files.cert, good.not_after, now >= good.not_after)
            if key not in self._warned:
                self._warned.add(key)
                _log.warning("certificate %s %s", watched.files.cert, fault)
        for bare in self._bare():
            for domain in bare.domains:
                if (key := (domain, 0.0, True)) not in self._warned:
                    self._warned.add(key)
                    _log.warning("%s: no certificate is for %s", bare.source, domain)


def _time_fault(not_before: float, not_after: float, now: float) -> str | None:
    if now >= not_after:
        return "has expired"
    if now < not_before:
        return "is not valid yet: is the clock of this machine right?"
    if not_after - now < (not_after - not_before) * _LATE_SHARE:
        return f"expires in {(not_after - now) / 86400:.1f} days and was not renewed"
    return None
