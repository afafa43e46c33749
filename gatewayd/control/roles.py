"""What each replica does where prompts and answers are made by different ones: asked until told.

Owns: when a replica is asked, `State.roles`. Does not own: the question (a router plug-in), which
replicas a router is told of (control.router_hosts follows the state), what a role is used for.

A role is never older than the replica's process: one that refused connections has none until it
has been asked again, and all are asked again every few seconds, for one may be started anew
between two requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gatewayd.control.state import State
from gatewayd.core.model import Address, ReplicaRole
from gatewayd.core.reconcile import backoff
from gatewayd.routers.base import AskRole, RouterError

_log = logging.getLogger(__name__)

Key = tuple[str, str]  # (Service.key, replica id)

ASK_FIRST_S: Final = 0.25  # until it tells: doubling up to ASK_AGAIN_S
ASK_AGAIN_S: Final = 5.0  # also one that has told
_AT_ONCE: Final = 16


@dataclass(slots=True)
class _Watch:
    type: str  # of the router
    address: Address
    task: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    unreachable: bool = False


class Roles:
    """`ask_of` gives the question that a type of router has; `on_change` is called after each
    change of `State.roles` that `follow` did not make."""

    def __init__(
        self, state: State, ask_of: Callable[[str], AskRole | None], on_change: Callable[[], None]
    ) -> None:
        self._state = state
        self._ask_of = ask_of
        self._on_change = on_change
        self._watches: dict[Key, _Watch] = {}
        self._faults: dict[Key, str] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)

    def __repr__(self) -> str:
        return f"<Roles {len(self._state.roles)} of {len(self._watches)} known>"

    def fault(self, service_key: str, replica_id: str) -> str | None:
        """Why its role is not known."""
        return self._faults.get((service_key, replica_id))

    def follow(self) -> None:
        """Ask those that the state names now. What has become unreachable is forgotten at once."""
        wanted = {
            (service.key, replica.id): (service.router.type, replica.address)
            for service, replica in self._state.replicas()
            if service.router is not None and service.router.pd_disaggregation
        }
        for key, watch in list(self._watches.items()):
            if wanted.get(key) != (watch.type, watch.address):
                del self._watches[key]
                if watch.task is not None:
                    watch.task.cancel()
                self._forget(key)
        for key, (type_, address) in wanted.items():
            watch = self._watches.get(key)  # type: ignore[assignment]
            if watch is None:
                watch = self._watches[key] = _Watch(type_, address)
                name = f"role of {' '.join(key)}"
                watch.task = asyncio.create_task(self._watch(key, watch), name=name)
            unreachable = key in self._state.unreachable
            if unreachable != watch.unreachable:
                watch.unreachable = unreachable
                watch.wake.set()
                if unreachable:
                    self._forget(key)

    async def aclose(self) -> None:
        self._on_change = lambda: None
        tasks = [watch.task for watch in self._watches.values() if watch.task is not None]
        self._watches.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, key: Key) -> None:
        self._state.roles.pop(key, None)
        self._faults.pop(key, None)

    async def _watch(self, key: Key, watch: _Watch) -> None:
        tries = 0
        while True:
            watch.wake.clear()
            pause: float | None = None  # until it accepts connections
            if not watch.unreachable:
                told = await self._ask(key, watch)
                tries = 0 if told else tries + 1
                pause = ASK_AGAIN_S if told else backoff(tries - 1, ASK_FIRST_S, ASK_AGAIN_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await watch.wake.wait()
                    tries = 0

    async def _ask(self, key: Key, watch: _Watch) -> bool:
        """Whether it told."""
        ask = self._ask_of(watch.type)
        if ask is None:
            return True
        try:
            async with self._places:
                role = await ask(watch.address)
        except RouterError as error:
            self._not_told(key, watch, str(error))
            return False
        except Exception:
            _log.exception("replica %s of %s could not be asked for its role", key[1], key[0])
            return False
        if self._watches.get(key) is watch and not watch.unreachable:
            self._told(key, role)
        return True

    def _told(self, key: Key, role: ReplicaRole) -> None:
        self._faults.pop(key, None)
        if self._state.roles.get(key) == role:
            return
        self._state.roles[key] = role
        _log.info("replica %s of %s: its role is %s", key[1], key[0], role.name)
        if role.name == "regular":
            _log.warning(
                "replica %s of %s is neither prefill nor decode: it gets no request", key[1], key[0]
            )
        self._on_change()

    def _not_told(self, key: Key, watch: _Watch, fault: str) -> None:
        # What is known stays: a replica that is busy need not answer, one that is dead will be
        # found by requests and probes.
        if self._watches.get(key) is watch and key not in self._state.roles:
            if self._faults.get(key) != fault:
                _log.info("replica %s of %s: its role is not known yet: %s", key[1], key[0], fault)
            self._faults[key] = fault
