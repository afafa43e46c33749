"""Renewals on their own, with clocks of the test's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from acme_front import Front

from gatewayd.control.acme_challenges import Proofs
from gatewayd.control.acme_issuer import Issuer
from gatewayd.control.acme_store import AcmeStore
from gatewayd.control.publisher import Publisher
from gatewayd.control.renewals import Renewals
from gatewayd.core.certificate import AcmeCertificate
from gatewayd.core.messages import CertificatePair

NAME = "a.example.com"
DAY = 86400.0


class Board:
    """Where workers would be."""

    def __init__(self) -> None:
        self.http: list[Mapping[str, str]] = []
        self.alpn: list[Mapping[str, CertificatePair]] = []

    async def challenge(
        self, http01: Mapping[str, str], alpn: Mapping[str, CertificatePair]
    ) -> None:
        self.http.append(http01)
        self.alpn.append(alpn)


class Bench:
    """Renewals on their own, with clocks of ours."""

    def __init__(self, folder: Path, *servers: str, ca_file: Path, **settings: Any) -> None:
        self.settings = AcmeCertificate(servers, str(ca_file), **settings)
        self.board = Board()
        self.later_s = 0.0  # both clocks
        self.off_s = 0.0  # the wall's alone
        self.changes = 0
        store = AcmeStore(folder)
        clocks: dict[str, Any] = {
            "clock": lambda: time.time() + self.later_s + self.off_s,
            "monotonic": lambda: time.monotonic() + self.later_s,
        }
        proofs = Proofs(cast(Publisher, self.board))
        self.issuer = Issuer(proofs, store, **clocks)
        self.renewals = Renewals(store, self.issuer, self._changed, **clocks, chance=lambda: 0.5)

    async def _changed(self) -> None:
        self.changes += 1

    async def __aenter__(self) -> Bench:
        await self.renewals.load()
        await self.issuer.follow(self.settings)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.renewals.aclose()

    async def look(self, *names: str) -> None:
        """One look, and the end of what it began."""
        await self.renewals.look(names or (NAME,))
        for managed in list(self.renewals.all()):
            for task in (managed.issuing, managed.asking):
                if task is not None:
                    await task

    @property
    def serial(self) -> bytes | None:
        managed = self.renewals.find(NAME)
        return None if managed is None or managed.issued is None else managed.issued.chain

    @property
    def fault(self) -> str:
        managed = self.renewals.find(NAME)
        assert managed is not None
        return managed.fault or ""


def orders(front: Front) -> int:
    return front.asked.count("/order-plz")
