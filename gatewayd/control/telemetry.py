"""What the data plane counted, whichever process counted it, and however often it was replaced.

Owns: adding up reports. Does not own: who counts (proxy.observe), how it is exported
(control.metrics).

Reports carry totals since a process began, so a lost one costs nothing. When a process dies its
last totals are kept in `_ended`: a successor that begins at zero cannot make a counter go back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from gatewayd.control.slot import SlotProcess
from gatewayd.core.messages import Report, ServiceTotals
from gatewayd.core.stats import add_totals

NOBODY = ""  # requests that belong to no service: unknown hosts, malformed heads


class Telemetry:
    def __init__(self) -> None:
        self._ended: dict[str, ServiceTotals] = {}
        self._running: dict[SlotProcess, dict[str, ServiceTotals]] = {}
        self._known: set[str] = {NOBODY}

    def __repr__(self) -> str:
        return f"<Telemetry {len(self._known)} services, {len(self._running)} processes>"

    def keep(self, services: Collection[str]) -> None:
        """These services exist; whatever was counted for others is forgotten."""
        gone = self._known.difference(services, (NOBODY,))
        self._known = {NOBODY, *services}
        for key in gone:
            self._ended.pop(key, None)
            for totals in self._running.values():
                totals.pop(key, None)

    def report(self, process: SlotProcess, report: Report) -> None:
        totals = self._running.setdefault(process, {})
        totals.update({k: counted for k, counted in report.totals.items() if k in self._known})

    def ended(self, process: SlotProcess) -> None:
        for key, counted in self._running.pop(process, {}).items():
            add_totals(self._ended.setdefault(key, ServiceTotals()), counted)

    def totals(self) -> dict[str, ServiceTotals]:
        """By service, "" for what belongs to none."""
        return {key: self.total(key) for key in self._known}

    def total(self, service_key: str) -> ServiceTotals:
        """A sum of our own making, safe to keep."""
        total = ServiceTotals()
        for part in (self._ended, *self._running.values()):
            if (counted := part.get(service_key)) is not None:
                add_totals(total, counted)
        return total

    def ways(self, service_key: str) -> Counter[str]:
        """How many exchanges of a service went which way."""
        ways: Counter[str] = Counter()
        for part in (self._ended, *self._running.values()):
            if (counted := part.get(service_key)) is not None:
                ways.update(counted.ways)
        return ways
