"""Client of the management API that routers of this family have: /workers and /liveness.

Owns: its paths and JSON, one call each. Does not own: what to call when (http_router).
Every failure is a RouterError that names the call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import aiohttp

from gatewayd.core.reconcile import ObservedTarget
from gatewayd.routers.base import RouterError

_TIMEOUT: Final = aiohttp.ClientTimeout(total=5.0)


@dataclass(frozen=True, slots=True)
class ListedTarget(ObservedTarget):
    """`fields` is all that its entry says."""

    fields: Mapping[str, Any] = field(default_factory=dict)


class RouterApi:
    """`registration` are the fields of every registration besides its URL."""

    def __init__(self, port: int, key: str, registration: Mapping[str, Any]) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._registration = registration
        self.key = key
        self._key = {"Authorization": f"Bearer {key}"}
        # trust_env is off by default: HTTP_PROXY must not capture calls over loopback.
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT)

    async def alive(self) -> bool:
        """It answers; says nothing about targets. /readiness would, but not whether they live."""
        try:
            status, _ = await self._call("GET", "/liveness", {})
        except RouterError:
            return False
        return status == 200

    async def holds_our_key(self) -> bool:
        """Whether it lets in only whoever knows the key: then it is the one we started."""
        refused, _ = await self._call("GET", "/workers", {})
        allowed, _ = await self._call("GET", "/workers", self._key)
        return (refused, allowed) == (401, 200)

    async def targets(self) -> list[ListedTarget]:
        """Registered ones only; registrations under way do not show."""
        status, body = await self._call("GET", "/workers", self._key)
        try:
            if status == 200:
                return [
                    ListedTarget(str(w["id"]), str(w["url"]), w["is_healthy"] is True, w)
                    for w in json.loads(body)["workers"]
                ]
        except (ValueError, KeyError, TypeError):
            pass
        raise RouterError(f"GET /workers: {status} {_short(body)}")

    async def add(self, url: str, fields: Mapping[str, Any] | None = None) -> str | None:
        """Ask for a registration, which goes on in the background; its id there. None: it is
        there, or another one for it goes on."""
        wish = {"url": url, **(fields or {}), **self._registration}
        status, body = await self._call("POST", "/workers", self._key, wish)
        if status == 409:
            return None
        try:
            if status == 202:
                return str(json.loads(body)["worker_id"])
        except (ValueError, KeyError, TypeError):
            pass
        raise RouterError(f"POST /workers {url}: {status} {_short(body)}")

    async def remove(self, id_: str) -> None:
        """Takes effect in milliseconds; its running requests are not cut. Gone is fine."""
        status, body = await self._call("DELETE", f"/workers/{id_}", self._key)
        if status not in (202, 404):
            raise RouterError(f"DELETE /workers/{id_}: {status} {_short(body)}")

    async def registering(self, id_: str) -> Literal["working", "done", "given up"]:
        """What became of an `add`. Not for steady use: each id is a metric label there."""
        status, body = await self._call("GET", f"/workers/{id_}", self._key)
        if status == 404:
            return "given up"
        try:
            if status == 200:
                job = json.loads(body).get("job_status")
                if job is None:
                    return "done"
                return "given up" if job["status"] == "failed" else "working"
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise RouterError(f"GET /workers/{id_}: {status} {_short(body)}")

    async def aclose(self) -> None:
        await self._session.close()

    async def _call(
        self, method: str, path: str, headers: dict[str, str], body: Any = None
    ) -> tuple[int, bytes]:
        try:
            async with self._session.request(
                method, self._base + path, headers=headers, json=body, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RouterError(f"{method} {path}: {str(error) or type(error).__name__}") from error


def _short(body: bytes) -> str:
    return body[:200].decode("utf-8", "replace")
