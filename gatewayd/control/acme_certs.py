"""The certificates that the gateway gets itself, for `Certificates`.

Owns: which names need one, waiting for it on somebody's behalf. Does not own: when and how it is
got (control.renewals). Imported only where an authority is configured.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from typing import Final

from gatewayd.control.acme_challenges import Proofs
from gatewayd.control.acme_issuer import Issuer
from gatewayd.control.acme_store import AcmeStore
from gatewayd.control.acme_wire import AcmeError
from gatewayd.control.certs import CertificateError, CertificateStatus, time_fault
from gatewayd.control.publisher import Publisher
from gatewayd.control.renewals import Prospect, Renewals
from gatewayd.core.certificate import AcmeCertificate
from gatewayd.core.messages import CertificatePair
from gatewayd.core.names import covers

ENSURE_TIMEOUT_S: Final = 40.0
_HOST: Final = re.compile(r"(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*")


class AcmeCerts:
    def __init__(
        self,
        publisher: Publisher,
        state_dir: str,
        on_change: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        store = AcmeStore(state_dir)
        self._issuer = Issuer(Proofs(publisher), store, clock=clock)
        self.renewals = Renewals(store, self._issuer, on_change, clock=clock)
        self._settings: AcmeCertificate | None = None

    def __repr__(self) -> str:
        return f"<AcmeCerts {self.renewals!r}>"

    async def aclose(self) -> None:
        await self.renewals.aclose()

    async def follow(self, settings: AcmeCertificate) -> None:
        self._settings = settings
        if await self._issuer.follow(settings):
            self.renewals.try_again()

    def pairs(self, taken: Collection[str]) -> list[CertificatePair]:
        """For every name that nobody else's certificate is for."""
        done = set(taken)
        pairs = []
        for read in self.renewals.reads():
            names = tuple(name for name in read.names if name not in done)
            done.update(names)
            if names:
                pairs.append(CertificatePair(names, read.chain, read.key))
        return pairs

    def status(self, now: float) -> Iterator[CertificateStatus]:
        for managed in self.renewals.all():
            read, issued = managed.read, managed.issued
            if read is None or issued is None:
                fault = managed.fault or "asked for"
                yield CertificateStatus((managed.name,), "", None, f"acme {managed.name}", fault)
                continue
            wanted = self.renewals.wanted(managed.name)
            fault_now = managed.fault or time_fault(read.not_before, read.not_after, now)
            yield CertificateStatus(
                *(read.names, read.issuer, read.not_after, issued.server),
                fault_now if wanted else None,
                wanted=wanted,
            )

    def asked(self) -> set[str]:
        """Names that there is nothing to serve for yet."""
        return {managed.name for managed in self.renewals.all() if managed.read is None}

    async def look(self, domains: Iterable[str], covered: Collection[str]) -> None:
        """`covered` are the names of other certificates."""
        assert self._settings is not None
        names = dict.fromkeys(self._settings.names)
        names.update({self._certificate_of(d): None for d in domains if not covers(covered, d)})
        await self.renewals.look([name for name in names if _HOST.fullmatch(name)])

    def expected(self, domains: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
        """Of domains without a certificate, whose is coming, and whose clients can hasten it."""
        prospects = {domain: self._prospect(domain) for domain in domains}
        coming = frozenset(d for d, prospect in prospects.items() if prospect == "coming")
        return coming, frozenset(d for d, prospect in prospects.items() if prospect == "paused")

    def _prospect(self, domain: str) -> Prospect:
        name = self._certificate_of(domain)
        return self.renewals.prospect(name) if _HOST.fullmatch(name) else "none"

    def hasten(self, domains: Iterable[str]) -> None:
        """Clients came for them."""
        for domain in domains:
            self.renewals.hasten(self._certificate_of(domain))

    async def ensure(self, names: Iterable[str]) -> None:
        """All are served, or CertificateError within a bounded time; nothing is left then."""
        wanted = list(dict.fromkeys(self._certificate_of(name) for name in names))
        for name in wanted:
            if not _HOST.fullmatch(name):
                raise CertificateError(f"No certificate can be for {name}")
        await asyncio.gather(*(self._wait(name, self.renewals.ensure(name)) for name in wanted))

    async def renew(self, name: str) -> None:
        managed = self.renewals.find(name)
        if managed is None:
            raise CertificateError(f"There is no certificate of an authority for {name}")
        await self._wait(managed.name, self.renewals.renew(managed.name))

    async def revoke(self, name: str, reason: int) -> bool:
        """Another one first, where it is wanted: but the old one is revoked anyhow."""
        managed = self.renewals.find(name)
        if managed is None or managed.issued is None:
            raise CertificateError(f"There is no certificate of an authority for {name}")
        old = managed.issued
        if self.renewals.wanted(managed.name):
            try:
                await self._wait(managed.name, self.renewals.renew(managed.name))
            except CertificateError:
                pass  # its fault is in the log, and it is tried again
        try:
            await self.renewals.revoke(managed, old, reason)
        except AcmeError as error:
            raise CertificateError(f"The certificate of {name} is not revoked: {error}") from error
        return managed.issued is not None

    def _certificate_of(self, domain: str) -> str:
        """The name that it is asked for by."""
        assert self._settings is not None
        names = self._settings.names
        if domain not in names and covers(names, domain):
            return f"*.{domain.partition('.')[2]}"
        return domain

    async def _wait(self, name: str, work: Awaitable[None]) -> None:
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(ENSURE_TIMEOUT_S):
                await work
        except (AcmeError, TimeoutError) as error:
            took = asyncio.get_running_loop().time() - began
            # The words that control planes know, then ours.
            why = f" {error}" if isinstance(error, AcmeError) else ""
            raise CertificateError(
                f"Could not obtain {name} TLS certificate in {took:.0f}s. "
                f"Make sure DNS records are configured for this gateway.{why}"
            ) from error
