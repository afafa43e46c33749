"""Reading the configuration file again: what changed, whether it may, and making it so.

Owns: the running configuration, what a reload keeps of what the registry API did, the count of
results. Does not own: finding differences (config.diff), changing the state (control.registry).

A reload changes what the file owns and leaves the rest: services and replicas that came through
the API stay, and a replica that was removed through the API does not come back because it still
stands in the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from gatewayd.config.diff import diff
from gatewayd.config.errors import ConfigError
from gatewayd.config.model import Config
from gatewayd.control.certs import Certificates
from gatewayd.control.conflicts import RefusedError
from gatewayd.control.limit_check import idle_limits_of
from gatewayd.control.registry import Registry
from gatewayd.control.state import State
from gatewayd.core.model import Replica, Service

_log = logging.getLogger(__name__)

LoadConfig = Callable[[], Config]

_GIVEN_AT_BIRTH: Final = frozenset({"limits", "log"})  # a worker has them in its first frame


@dataclass(frozen=True, slots=True)
class Outcome:
    changes: tuple[str, ...]  # one line each
    applied: bool


class NeedsRestartError(RefusedError):
    """Something differs that only a restart applies; nothing was changed."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Reloader:
    def __init__(
        self,
        config: Config,
        load: LoadConfig | None,
        state: State,
        registry: Registry,
        certificates: Certificates,
    ) -> None:
        self.config = config
        self.results = {"success": 0, "failure": 0}
        self._load = load
        self._state = state
        self._registry = registry
        self._certificates = certificates
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Reloader {self.config.source or 'without a file'} {self.results}>"

    async def reload(self, *, dry_run: bool = False) -> Outcome:
        """Raises ConfigError or RefusedError; then the old configuration stays. Whoever asked, the
        log says what came of it; of a dry run it says nothing."""
        async with self._lock:
            try:
                outcome = await self._reload(dry_run)
            except (ConfigError, RefusedError) as error:
                if not dry_run:
                    self._failed(error)
                raise
            if not dry_run:
                self._succeeded(outcome)
            return outcome

    async def reload_for_signal(self) -> None:
        """Nobody waits for the answer: it is in the log."""
        with contextlib.suppress(ConfigError, RefusedError):
            await self.reload()

    def _failed(self, error: ConfigError | RefusedError) -> None:
        self.results["failure"] += 1
        for line in str(error).splitlines():
            _log.error("reload: %s", line)
        _log.error("reload failed; the running configuration stays")

    def _succeeded(self, outcome: Outcome) -> None:
        self.results["success"] += 1
        for line in outcome.changes:
            _log.info("reload: %s", line)
        for line in idle_limits_of(self.config.services):
            _log.warning("reload: %s", line)
        _log.info("reloaded: %d changes", len(outcome.changes))

    async def _reload(self, dry_run: bool) -> Outcome:
        if self._load is None:
            raise RefusedError("this gateway was started without a configuration file")
        # In a thread: a long file takes long to read, and checking a router runs it.
        new = await asyncio.to_thread(self._load)
        difference = diff(self.config, new)
        given_at_birth = tuple(
            f"{line}; restart gatewayd to change it"
            for line in difference.changes
            if line.partition(":")[0].partition(".")[0] in _GIVEN_AT_BIRTH
        )
        if refused := (*difference.refused, *given_at_birth):
            raise NeedsRestartError(refused)
        services = merged(self._state.services, self.config, new)
        changes = difference.changes
        if dry_run:
            return Outcome(changes, applied=False)
        # First: nobody is sent to HTTPS that is not there yet.
        await self._certificates.follow(new)
        try:
            await self._registry.replace_all(
                services,
                new.auth,
                new.trusted_proxies,
                new.project,
                new.model_endpoint,
                new.registered_auth,
            )
        except Exception:
            await self._certificates.follow(self.config)
            raise
        self._certificates.expect()
        self.config = new
        return Outcome(changes, applied=True)


def merged(current: Mapping[str, Service], old: Config, new: Config) -> dict[str, Service]:
    """All services after the reload. RefusedError when the file names what the API registered."""
    before = {service.key: service for service in old.services}
    after = {service.key: service for service in new.services}
    services = {
        key: service for key, service in current.items() if service.origin == "api" or key in after
    }
    for key, service in after.items():
        running = services.get(key)
        if running is not None and running.origin == "api":
            raise RefusedError(f"Service {key} is registered already, through the registry API")
        if running is None:
            services[key] = service
        else:
            replicas = _replicas(running, before.get(key), service)
            services[key] = replace(service, replicas=replicas)
    return services


def _replicas(running: Service, before: Service | None, after: Service) -> tuple[Replica, ...]:
    had = {replica.id: replica for replica in before.replicas} if before is not None else {}
    wants = {replica.id: replica for replica in after.replicas}
    replicas = {
        replica.id: replica
        for replica in running.replicas
        if replica.origin == "api" or replica.id in wants
    }
    for replica_id, replica in wants.items():
        if had.get(replica_id) != replica:  # new in the file, or at another address
            replicas[replica_id] = replica
    return tuple(replicas.values())
