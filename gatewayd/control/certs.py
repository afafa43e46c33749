"""The certificates of the gateway: which there are, and that every worker has them.

Owns: their order, who is told of a change, what status and metrics show. Does not own: files
(control.certificate_files), getting them (control.acme_certs), delivery (control.publisher),
handshakes (net.tls).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gatewayd.config.model import Config
from gatewayd.control.acme_settings import acme_settings
from gatewayd.control.publisher import Publisher
from gatewayd.control.state import State
from gatewayd.core.certificate import AcmeCertificate, FileCertificate, FileSource
from gatewayd.core.messages import CertificatePair
from gatewayd.core.names import covers, uncovered

if TYPE_CHECKING:
    from gatewayd.control.acme_certs import AcmeCerts
    from gatewayd.control.certificate_files import CertificateFiles, WatchedFiles

_log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 2.0
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
    wanted: bool = True  # else it is served while it lasts, and nobody is to care for its end


class Certificates:
    """`follow` at start and after each reload; what changes by itself is told to workers too."""

    def __init__(
        self, state: State, publisher: Publisher, clock: Callable[[], float] = time.time
    ) -> None:
        self._state = state
        self._publisher = publisher
        self._clock = clock
        self._files: CertificateFiles | None = None
        self._acme: AcmeCerts | None = None
        self._config: Config | None = None
        self._published: tuple[tuple[CertificatePair, ...], str | None] = ((), None)
        self._warned: set[tuple[str, float, bool]] = set()
        self._sighted: set[str] = set()
        self._wake = asyncio.Event()
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
        async with self._changing:
            await self._follow_acme()
            if self._files is not None:
                await asyncio.to_thread(self._files.follow, sources, self._clock())
            await self._publish()
            self.expect()
        if self._task is None and config.listen.https:
            self._task = asyncio.create_task(self._watch(), name="certificates")

    async def ensure(self, names: tuple[str, ...]) -> None:
        """Returns when clients that ask for these names get a certificate. CertificateError."""
        config = self._config
        if config is None or not config.listen.https:
            raise CertificateError("This gateway serves no HTTPS: `listen.https` is not configured")
        missing = uncovered(self._served(), names)
        if missing:
            async with self._changing:
                acme = await self._follow_acme()
            if acme is None:
                raise CertificateError(
                    f"No certificate is for {', '.join(missing)}: add one to the configuration"
                )
            await acme.ensure(missing)

    def expect(self) -> None:
        """Whoever comes for a name that is served soon is to wait for it. Called also by whoever
        has changed the services."""
        config, acme = self._config, self._acme
        if config is None or acme is None or acme_settings(config, self._state.acme) is None:
            self._publisher.expect(frozenset(), frozenset())
        else:
            self._publisher.expect(*acme.expected(uncovered(self._served(), self._domains())))

    def beat(self) -> float:
        """To be called again after as many seconds as it returns, or not by itself."""
        self._wake.set()
        return math.inf if self._task is None else _LOOK_EVERY_S

    def sighted(self, names: Iterable[str]) -> None:
        """Clients came for these, and wait for a certificate. Without HTTPS nobody looks."""
        self._sighted.update(names)
        if self._sighted:
            self._wake.set()

    async def renew(self, name: str) -> None:
        """A new one now. CertificateError."""
        await self._require_acme().renew(name)

    async def revoke(self, name: str, reason: int) -> bool:
        """The one of `name` is not served any more; whether another one is. CertificateError."""
        return await self._require_acme().revoke(name, reason)

    def _require_acme(self) -> AcmeCerts:
        if self._acme is None:
            raise CertificateError(
                "This gateway gets no certificates itself: see `certificate` in the file"
            )
        return self._acme

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
            fault = watched.fault or time_fault(good.not_before, good.not_after, now)
            names = domains.get((good.chain, good.key), ())
            found.append(
                CertificateStatus(names, good.issuer, good.not_after, watched.files.cert, fault)
            )
        unreadable = {} if self._files is None else self._files.unreadable
        folders = [CertificateStatus((), "", None, *each) for each in unreadable.items()]
        own = [] if self._acme is None else list(self._acme.status(now))
        return [*found, *folders, *own, *self._bare()]

    def _served(self) -> set[str]:
        return {name for pair in self.pairs() for name in pair.names}

    def _bare(self) -> Iterator[CertificateStatus]:
        """Of services that plain HTTP is sent away from, those domains that nobody can be sent to:
        a service of the registry outlives the certificate that it was registered with. What an
        authority is asked for is told with its trouble there."""
        asked = () if self._acme is None else self._acme.asked()
        served = self._served()
        for service in self._state.services.values():
            if not service.https:
                continue
            missing = [n for n in uncovered(served, service.domains) if not covers(asked, n)]
            if missing:
                yield CertificateStatus(
                    tuple(missing), "", None, f"service {service.key}", "no certificate is for it"
                )

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._acme is not None:
            await self._acme.aclose()

    async def _follow_acme(self) -> AcmeCerts | None:
        """As the file, or a control plane, wants it now."""
        assert self._config is not None
        settings = acme_settings(self._config, self._state.acme)
        if settings is None:
            return None
        if self._acme is None:
            from gatewayd.control.acme_certs import AcmeCerts

            self._acme = AcmeCerts(
                self._publisher, self._config.state_dir, self._acme_changed, self._clock
            )
            await self._acme.renewals.load()
        await self._acme.follow(settings)
        return self._acme

    async def _acme_changed(self) -> None:
        async with self._changing:
            await self._publish()
            self.expect()

    # --- what is served

    def _sources(self) -> Iterator[tuple[FileSource, tuple[str, ...]]]:
        """Each with the domains it is for before others: a service's own before the gateway's."""
        config = self._config
        assert config is not None
        for service in config.services:
            if service.certificate is not None:
                yield service.certificate, service.domains
        if config.certificate is not None and not isinstance(config.certificate, AcmeCertificate):
            yield config.certificate, ()

    def _watched(self) -> Iterator[tuple[WatchedFiles, tuple[str, ...]]]:
        if self._files is None:
            return
        for source, domains in self._sources():
            for watched in self._files.of(source):
                yield watched, domains

    def _domains(self) -> Iterator[str]:
        """Names whose clients are to come by HTTPS, but those with a certificate of their own."""
        for service in self._state.services.values():
            if service.https and service.certificate is None:
                yield from service.domains
        for entrypoint in self._state.all_entrypoints():
            if entrypoint.https:
                yield entrypoint.domain

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
        own = [] if self._acme is None else self._acme.pairs(owner)
        return (*pairs.values(), *own), default

    async def _publish(self) -> None:
        compiled = self._compile()
        if compiled != self._published:
            self._published = compiled
            await self._publisher.certify(*compiled)

    # --- changes

    async def _watch(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._look()
                self._warn()
            except Exception:
                _log.exception("looking after certificates failed; those there are stay")

    async def _look(self) -> None:
        async with self._changing:
            files = self._files
            if files is not None and await asyncio.to_thread(files.look, self._clock()):
                await self._publish()
            acme = await self._follow_acme()
            covered = {
                name for w, _ in self._watched() if w.good is not None for name in w.good.names
            }
        sighted, self._sighted = self._sighted, set()
        if acme is not None:  # without the lock: what it changes it publishes
            acme.hasten(sighted.intersection(self._domains()))
            await acme.look(self._domains(), covered)
        self.expect()

    def _warn(self) -> None:
        """Once for each certificate that nobody has renewed in time, and once more at its end."""
        now = self._clock()
        for watched in [] if self._files is None else self._files.all():
            good = watched.good
            if good is None or not (fault := time_fault(good.not_before, good.not_after, now)):
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


def time_fault(not_before: float, not_after: float, now: float) -> str | None:
    if now >= not_after:
        return "has expired"
    if now < not_before:
        return "is not valid yet: is the clock of this machine right?"
    if not_after - now < (not_after - not_before) * _LATE_SHARE:
        return f"expires in {(not_after - now) / 86400:.1f} days and was not renewed"
    return None
