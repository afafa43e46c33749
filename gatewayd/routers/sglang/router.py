"""The sglang-router as a supervised child: its start, its identity, its targets.

Owns: one run's port, key and API client; steps from observed to desired targets. Does not own:
flags (options), calls (api), the decision (core.reconcile), when to sync (control.router_host).
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from gatewayd.core.model import RouterSpec, RouterTraits
from gatewayd.core.reconcile import PATIENCE_S, Asked, ObservedTarget, plan
from gatewayd.net.ports import PortPool
from gatewayd.net.process import Command
from gatewayd.routers.base import RouterError, SubprocessRouter, SyncState, Target
from gatewayd.routers.sglang import logs, options
from gatewayd.routers.sglang.api import RouterApi
from gatewayd.routers.sglang.traits import traits

# What it says about things that are as they should be: our labels, our probes of its identity,
# targets behind a bridge that needs no key, dummies. Replicas' answers are in our access log.
_CHATTER = re.compile(
    "Failed to load tokenizer for model .* from /dev/null|without API key while router has"
    "|http://127\\.0\\.0\\.1:0\\b|No loads fetched from workers"
    "|request failed with (client|server) error"
)
_LAUNCH = Path(__file__).with_name("launch.py")


class SglangRouter(SubprocessRouter):
    def __init__(self, name: str, spec: RouterSpec, *, ports: PortPool, log_dir: Path) -> None:
        super().__init__(name, ports=ports, ready_timeout=10.0, stop_timeout=options.GRACE_S + 2.0)
        self._spec = spec
        self._log_dir = log_dir
        self._key: str | None = None
        self._api: RouterApi | None = None
        self._asked: dict[str, Asked] = {}
        self._ids: dict[str, str] = {}  # url -> the router's id, while it is asked for

    def command(self, port: int) -> Command:
        self._log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        logs.tidy(self._log_dir)
        self._key = secrets.token_urlsafe(32)
        self._asked.clear()
        self._ids.clear()
        # -P: a script's folder would be searched for modules, and ours has generic names.
        return Command(
            (sys.executable, "-P", str(_LAUNCH), *options.argv(self._spec, port, self._log_dir)),
            # Read here and nowhere else: what the child may see of it is decided in options.
            options.environment(os.environ, self._key),
            chatter=_CHATTER,
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
        wanted = {target.url: target.id for target in targets}
        observed = await self._observe(api, wanted)
        actions = plan(list(wanted), observed, self._asked, _now())
        for url in actions.add:
            tries = self._asked[url].tries + 1 if url in self._asked else 1
            self._asked[url] = Asked(_now(), tries)  # before the call: a lost answer may be a yes
            self._ids[url] = await api.add(url)
        for id_ in actions.remove:
            await api.remove(id_)
        if not actions.settled:
            observed = await self._observe(api, wanted)
            actions = plan(list(wanted), observed, self._asked, _now())
        return SyncState(
            serving=frozenset(wanted[t.url] for t in observed if t.healthy and t.url in wanted),
            present=frozenset(t.url for t in observed) | self._asked.keys(),
            settled=actions.settled and self._asked.keys() <= wanted.keys(),
        )

    async def health(self) -> bool:
        return self._api is not None and await self._api.alive()

    async def tidy(self) -> None:
        await asyncio.to_thread(logs.tidy, self._log_dir)

    async def stop(self) -> None:
        try:
            await super().stop()
        finally:
            await self._forget()

    @property
    def traits(self) -> RouterTraits:
        return traits(self._spec, self._key)

    async def _observe(self, api: RouterApi, wanted: dict[str, str]) -> list[ObservedTarget]:
        """The list, and what it tells about registrations that were asked for."""
        observed = await api.targets()
        for target in observed:
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
            self._api = RouterApi(port, self._key)
        return self._api

    async def _forget(self) -> None:
        if self._api is not None:
            api, self._api = self._api, None
            await api.aclose()

    def _running(self) -> RouterApi:
        if self._api is None or self.endpoint is None:
            raise RouterError("the router is not running")
        return self._api


def _now() -> float:
    return asyncio.get_running_loop().time()
