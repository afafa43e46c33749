"""Certificates that the gateway gets itself: which are there, which are due, what went wrong.

Owns: when each is asked for, again after a failure, and renewed; keeping the old one meanwhile.
Does not own: asking (control.acme_issuer), disk (control.acme_store), who is told (control.certs).

One certificate for each name, so that no name's trouble is another's. All is looked at once a
second; what takes long is a task of its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal

from gatewayd.control.acme_issuer import Issuer
from gatewayd.control.acme_store import AcmeStore, Issued
from gatewayd.control.acme_wire import AcmeError
from gatewayd.control.certificate_pairs import ReadCertificate, read_pair
from gatewayd.core.acme import due, due_in, wait_after
from gatewayd.core.names import covers
from gatewayd.net.tls import BadCertificateError

_log = logging.getLogger(__name__)

_ADVICE_S: Final = 6 * 3600.0  # how often an authority is asked when to renew, unless it says
_ADVICE_SPREAD_S: Final = 600.0  # over which it is asked after the start
_ADVICE_SHORTEST_S: Final = 60.0
_ADVICE_LONGEST_S: Final = 24 * 3600.0
# Between two of one name, whatever clocks and authorities say: of its lifetime, and at most.
_PAUSE_SHARE, _PAUSE_MAX_S = 0.05, 3600.0
_SAVE_AGAIN_S: Final = 10.0
# Clients cause a try between two others once in this time, since authorities count those that fail
# (Let's Encrypt: five an hour); and not at once after a failure, for they come back at once.
_HASTE_S: Final = 1800.0
_HASTE_AFTER_S: Final = 10.0
_KEPT_S: Final = 30 * 86400.0  # an expired one that nobody wants


# What clients of a name without a certificate may expect: it is asked for, or will be within a
# second; the next try is later, but `hasten` brings it forward; neither.
Prospect = Literal["coming", "paused", "none"]


@dataclass(slots=True)
class Managed:
    """One name."""

    name: str
    issued: Issued | None = None
    read: ReadCertificate | None = None
    due: float = 0.0  # Unix seconds
    chance: float = 0.0  # where in the window of the authority's advice
    failures: int = 0  # in a row
    again_at: float = 0.0  # monotonic: not asked for before
    forbidden: bool = False  # until then, by the authority
    haste_at: float = 0.0  # monotonic: clients bring no try forward before
    planned: float = 0.0  # monotonic: the next try, if the one brought forward fails
    fault: str | None = None
    save_at: float | None = None  # monotonic: it is not on disk
    advice_at: float = 0.0  # monotonic
    issuing: asyncio.Task[bool] | None = None  # whether one was got
    asking: asyncio.Task[None] | None = field(default=None, repr=False)


class Renewals:
    """`on_change` makes what is served what `reads` tells."""

    def __init__(
        self,
        store: AcmeStore,
        issuer: Issuer,
        on_change: Callable[[], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._issuer = issuer
        self._on_change = on_change
        self._clock = clock
        self._monotonic = monotonic
        self._chance = chance
        self._managed: dict[str, Managed] = {}
        self._wanted: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<Renewals {len(self._managed)} names>"

    async def load(self) -> None:
        """What is on disk, without asking anybody."""
        for issued in await asyncio.to_thread(lambda: list(self._store.load())):
            try:
                read = await asyncio.to_thread(read_pair, issued.chain, issued.key)
            except BadCertificateError as error:
                _log.error("certificate of %s on disk: %s", issued.name, error)
                continue
            self._managed[issued.name] = Managed(
                issued.name,
                issued,
                read,
                due=due(read.not_before, read.not_after),
                chance=self._chance(),
                advice_at=self._monotonic() + self._chance() * _ADVICE_SPREAD_S,
            )

    async def aclose(self) -> None:
        tasks = [t for m in self._managed.values() for t in (m.issuing, m.asking) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._issuer.aclose()

    # --- what there is

    def reads(self) -> Iterator[ReadCertificate]:
        """Those that can be served, the wanted ones first."""
        for managed in sorted(self._managed.values(), key=lambda m: m.name not in self._wanted):
            if managed.read is not None:
                yield managed.read

    def all(self) -> Iterator[Managed]:
        """Those that somebody wants, or that are served."""
        for managed in self._managed.values():
            if managed.read is not None or managed.name in self._wanted:
                yield managed

    def find(self, name: str) -> Managed | None:
        """The certificate that `name` is served with, or that is for it."""
        if (managed := self._managed.get(name)) is not None:
            return managed
        return next(
            (m for m in self._managed.values() if m.read and covers(m.read.names, name)), None
        )

    def wanted(self, name: str) -> bool:
        return name in self._wanted

    # --- in time

    def try_again(self) -> None:
        """Whoever is asked now is another one."""
        for managed in self._managed.values():
            managed.failures, managed.again_at, managed.haste_at = 0, 0.0, 0.0

    def prospect(self, name: str) -> Prospect:
        managed, now = self._managed.get(name), self._monotonic()
        if managed is None or _runs(managed.issuing) or now >= managed.again_at:
            return "coming"
        return "none" if managed.forbidden or now < managed.haste_at else "paused"

    def hasten(self, name: str) -> None:
        """A client came for it: it is due now, unless the authority or our own pause forbids."""
        if self.prospect(name) == "paused":
            managed, now = self._managed[name], self._monotonic()
            managed.planned, managed.again_at = managed.again_at, now
            managed.haste_at = now + _HASTE_S
            _log.info("certificate of %s is asked for now: a client came for it", name)

    async def look(self, wanted: Collection[str]) -> None:
        """Begin whatever is due. Nothing here waits for an authority."""
        self._wanted = frozenset(wanted)
        now, clock = self._monotonic(), self._clock()
        for name in wanted:
            managed = self._managed.setdefault(name, Managed(name))
            if self._idle(managed):
                # A renewal that failed is tried again also where somebody asked before it was due.
                if managed.read is None or clock >= managed.due or managed.fault is not None:
                    if now >= managed.again_at:
                        self._begin(managed)
                elif now >= managed.advice_at:
                    managed.asking = asyncio.create_task(
                        self._ask_when(managed), name=f"when to renew {name}"
                    )
        for managed in list(self._managed.values()):
            if managed.save_at is not None and now >= managed.save_at:
                await self._save(managed)
            if managed.name not in self._wanted and self._idle(managed):
                await self._forget(managed, clock)

    async def ensure(self, name: str) -> None:
        """Returns when it is served. AcmeError. Who stops waiting ends the order, unless somebody
        else wants it."""
        managed = self._managed.setdefault(name, Managed(name))
        usable = managed.read is not None and self._clock() < managed.read.not_after
        # One that has just come is not served before its task has ended.
        if not usable or _runs(managed.issuing):
            await self._issue_anew(managed)

    async def renew(self, name: str) -> None:
        """A new one now, whether it is due or not. AcmeError."""
        await self._issue_anew(self._managed.setdefault(name, Managed(name)))

    async def _issue_anew(self, managed: Managed) -> None:
        # A person or a control plane asks: whatever failed before may be mended.
        if not await self._issue_now(managed):
            raise AcmeError(managed.fault or "no certificate was issued")

    async def revoke(self, managed: Managed, issued: Issued, reason: int) -> None:
        """Once the authority has, it is not served any more. AcmeError."""
        try:
            await self._issuer.revoke(issued, reason)
        except TimeoutError:
            raise AcmeError(f"{issued.server} does not answer in time") from None
        _log.info("certificate of %s was revoked", managed.name)
        if managed.issued is issued:
            managed.issued = managed.read = None
            if not managed.failures:
                managed.again_at = 0.0  # the pause is for those that are served
            with suppress(OSError):
                await asyncio.to_thread(self._store.delete, managed.name)
            await self._on_change()

    # --- one order

    def _idle(self, managed: Managed) -> bool:
        return not _runs(managed.issuing) and not _runs(managed.asking)

    def _begin(self, managed: Managed, *, every_way: bool = False) -> asyncio.Task[bool]:
        if managed.issuing is None or managed.issuing.done():
            managed.issuing = asyncio.create_task(
                self._issue(managed, every_way=every_way), name=f"certificate of {managed.name}"
            )
        return managed.issuing

    async def _issue_now(self, managed: Managed) -> bool:
        task = self._begin(managed, every_way=True)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if managed.name not in self._wanted and not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            raise

    async def _issue(self, managed: Managed, *, every_way: bool) -> bool:
        try:
            issued = await self._issuer.issue(managed.name, managed.issued, every_way=every_way)
            read = read_pair(issued.chain, issued.key)
            if not covers(read.names, managed.name):
                raise AcmeError(f"the authority's certificate is for {', '.join(read.names)}")
        except AcmeError as error:
            forbidden = error.retry_after is not None or error.kind == "rateLimited"
            self._failed(managed, str(error), error.retry_after, forbidden=forbidden)
            return False
        except BadCertificateError as error:
            self._failed(managed, f"the authority's certificate {error}")
            return False
        except Exception:
            _log.exception("certificate of %s", managed.name)
            self._failed(managed, "a fault of gatewayd, see its log")
            return False
        managed.issued, managed.read = issued, read
        managed.due, managed.chance = due(read.not_before, read.not_after), self._chance()
        lifetime = read.not_after - read.not_before
        pause = min(lifetime * _PAUSE_SHARE, _PAUSE_MAX_S)
        managed.advice_at = self._monotonic()
        managed.again_at = managed.advice_at + pause
        _log.info("certificate of %s issued by %s", managed.name, read.issuer)
        now = self._clock()
        failures, managed.failures, managed.fault = managed.failures, 0, None
        if now < read.not_before:
            _log.warning(
                "the new certificate of %s is valid only in %.0f s: is the clock of this machine "
                "right?",
                *(managed.name, read.not_before - now),
            )
        elif now >= managed.due:
            # Else it would be asked for again and again.
            managed.failures = failures
            text = "the new certificate is due again by this machine's clock: is it right?"
            self._failed(managed, text)
        await self._save(managed)
        await self._on_change()
        return True

    def _failed(
        self,
        managed: Managed,
        fault: str,
        retry_after: float | None = None,
        *,
        forbidden: bool = False,
    ) -> None:
        now = self._monotonic()
        if managed.planned > now:
            wait = max(managed.planned - now, retry_after or 0.0)
        else:
            managed.failures += 1
            wait = wait_after(managed.failures, self._chance(), retry_after)
        managed.fault, managed.forbidden, managed.planned = fault, forbidden, 0.0
        managed.again_at = now + wait
        managed.haste_at = max(managed.haste_at, now + _HASTE_AFTER_S)
        kept = "" if managed.read is None else "; the one there is serves on"
        if managed.name not in self._wanted:  # a registration's, say, which fails with it
            _log.error("no certificate for %s: %s%s", managed.name, fault, kept)
            return
        _log.error(
            "no certificate for %s: %s%s. Tried again in %.0f s, or with `gatewayd certs renew %s`",
            *(managed.name, fault, kept, wait, managed.name),
        )

    async def _save(self, managed: Managed) -> None:
        if managed.issued is None:  # revoked meanwhile
            managed.save_at = None
            return
        try:
            await asyncio.to_thread(self._store.write, managed.issued)
        except OSError as error:
            if managed.save_at is None:
                _log.error(
                    "certificate of %s cannot be saved: %s; it is kept in memory and saved later",
                    *(managed.name, error.strerror or error),
                )
            managed.save_at = self._monotonic() + _SAVE_AGAIN_S
            return
        if managed.save_at is not None:
            _log.info("certificate of %s is saved now", managed.name)
        managed.save_at = None

    async def _ask_when(self, managed: Managed) -> None:
        assert managed.issued is not None
        assert managed.read is not None
        wait = _ADVICE_S
        try:
            window = await self._issuer.window(managed.issued)
        except (AcmeError, TimeoutError) as error:
            _log.debug("when to renew %s is not known: %s", managed.name, error)
        else:
            if window is not None and managed.read is not None:
                managed.due = due_in(
                    window.start, window.end, managed.read.not_after, managed.chance
                )
                wait = window.ask_again or wait
        wait = min(max(wait, _ADVICE_SHORTEST_S), _ADVICE_LONGEST_S)
        managed.advice_at = self._monotonic() + wait

    async def _forget(self, managed: Managed, now: float) -> None:
        if managed.read is None:
            self._managed.pop(managed.name, None)
        elif now >= managed.read.not_after + _KEPT_S:
            self._managed.pop(managed.name, None)
            with suppress(OSError):
                await asyncio.to_thread(self._store.delete, managed.name)
            _log.info("certificate of %s expired long ago, and is deleted", managed.name)
            await self._on_change()


def _runs(task: asyncio.Task[bool] | asyncio.Task[None] | None) -> bool:
    return task is not None and not task.done()
