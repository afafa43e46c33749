"""A router with an HTTP management API as a supervised child: its start, identity, targets.

Owns: one run's port, key and API client; steps from observed to desired targets. Does not own:
flags (http_flags), calls (http_api), the decision (core.reconcile), when to sync
(control.router_host), what is particular to one router (its plug-in, a subclass).
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from gatewayd.core.model import RouterSpec
from gatewayd.core.reconcile import PATIENCE_S, Asked, ObservedTarget, plan
from gatewayd.net.ports import PortPool
from gatewayd.net.process import Command
from gatewayd.routers import http_flags, http_logs
from gatewayd.routers.base import RouterError, SubprocessRouter, SyncState, Target
from gatewayd.routers.http_api import RouterApi

_LAUNCH = Path(__file__).with_name("http_launch.py")


class HttpRouter(SubprocessRouter):
    """`package` is what Python imports; `registration` goes with every target; `chatter` are
    lines about things that are as they should be; `grace_s` its time for running requests;
    `environment` goes to its process, where ours has nothing of the name."""

    package: ClassVar[str]
    registration: ClassVar[Mapping[str, Any]] = {}
    chatter: ClassVar[re.Pattern[str]]
    grace_s: ClassVar[float]
    environment: ClassVar[Mapping[str, str]] = {}

    def __init__(self, name: str, spec: RouterSpec, *, ports: PortPool, log_dir: Path) -> None:
        super().__init__(name, ports=ports, ready_timeout=10.0, stop_timeout=self.grace_s + 2.0)
        self._spec = spec
        self._log_dir = log_dir
        self._key: str | None = None
        self._api: RouterApi | None = None
        self._asked: dict[str, Asked] = {}
        self._ids: dict[str, str] = {}  # url -> the router's id, while it is asked for

    @abstractmethod
    def argv(self, port: int, log_dir: Path) -> list[str]:
        """Its policy, and its flags."""

    def command(self, port: int) -> Command:
        self._log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        http_logs.tidy(self._log_dir)
        self._key = secrets.token_urlsafe(32)
        self._asked.clear()
        self._ids.clear()
        # -P: a script's folder would be searched for modules, and ours has generic names.
        launch = (sys.executable, "-P", str(_LAUNCH), self.package)
        return Command(
            (*launch, *self.argv(port, self._log_dir)),
            # Read here and nowhere else: what the child may see of it is decided in http_flags.
            http_flags.environment(os.environ, self._key, self.environment),
            chatter=self.chatter,
        )

    async def is_ours(self, port: int) -> bool:
        api = await self._client(port)
        if not await api.alive():
            return False
        if not await api.holds_our_key():
            raise RouterError(f"what answers on port {port} is not the router that was started")
        return True

    async def sync(self, targets: Sequence[Target]) -> SyncState:
        api = self._running()
        wanted = {target.url: target for target in targets}
        observed = await self._observe(api, wanted)
        actions = plan(list(wanted), observed, self._asked, _now())
        for url in actions.add:
            tries = self._asked[url].tries + 1 if url in self._asked else 1
            self._asked[url] = Asked(_now(), tries)  # before the call: a lost answer may be a yes
            if id_ := await api.add(url, _fields(wanted[url])):
                self._ids[url] = id_
        for id_ in actions.remove:
            await api.remove(id_)
        if not actions.settled:
            observed = await self._observe(api, wanted)
            actions = plan(list(wanted), observed, self._asked, _now())
        return SyncState(
            serving=frozenset(wanted[t.url].id for t in observed if t.healthy and t.url in wanted),
            present=frozenset(t.url for t in observed) | self._asked.keys(),
            settled=actions.settled and self._asked.keys() <= wanted.keys(),
        )

    async def health(self) -> bool:
        return self._api is not None and await self._api.alive()

    async def tidy(self) -> None:
        await asyncio.to_thread(http_logs.tidy, self._log_dir)

    async def stop(self) -> None:
        try:
            await super().stop()
        finally:
            await self._forget()

    async def _observe(self, api: RouterApi, wanted: Mapping[str, Target]) -> list[ObservedTarget]:
        """The list, and what it tells about registrations that were asked for. One with another
        role than is wanted is of no use: it is to go, and to be registered anew."""
        observed: list[ObservedTarget] = []
        for target in await api.targets():
            fits = target.url not in wanted or _fields(wanted[target.url]).items() <= (
                target.fields.items()
            )
            observed.append(target if fits else replace(target, healthy=False))
            if target.healthy:
                self._asked.pop(target.url, None)
                self._ids.pop(target.url, None)
        # A removal cannot cancel a registration under way, so one that is no longer wanted is
        # waited for until it either shows, and is removed, or is given up.
        there = {target.url for target in observed}
        for url in self._asked.keys() - there - wanted.keys():
            id_ = self._ids.get(url)
            if id_ is None:  # the answer to the call was lost, and with it the way to ask
                over = _now() - self._asked[url].at >= PATIENCE_S
            else:
                over = await api.registering(id_) == "given up"
            if over:
                del self._asked[url]
                self._ids.pop(url, None)
        return observed

    async def _client(self, port: int) -> RouterApi:
        """The client of this run; the one of the last run is closed."""
        assert self._key is not None
        if self._api is None or self._api.key != self._key:
            await self._forget()
            self._api = RouterApi(port, self._key, self.registration)
        return self._api

    async def _forget(self) -> None:
        if self._api is not None:
            api, self._api = self._api, None
            await api.aclose()

    def _running(self) -> RouterApi:
        if self._api is None or self.endpoint is None:
            raise RouterError("the router is not running")
        return self._api


def _fields(target: Target) -> dict[str, Any]:
    """Of its registration, and of its entry in the list."""
    if target.role is None:
        return {}
    fields: dict[str, Any] = {"worker_type": target.role}
    if target.bootstrap_port is not None:
        fields["bootstrap_port"] = target.bootstrap_port
    return fields


def _now() -> float:
    return asyncio.get_running_loop().time()
