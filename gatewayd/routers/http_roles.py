"""What a replica says of itself: whether it makes prompts, answers or both.

Owns: the question and how its answer is read. Does not own: when it is asked (control.roles).

The engines of this family say it in their server info, which names the arguments they were started
with. A role that is not told is waited for: a prefill that was taken for a regular one would be
sent requests that it cannot answer.
"""

from __future__ import annotations

import json
from typing import Any, Final

from gatewayd.core.model import Address, ReplicaRole, UnixAddress
from gatewayd.routers.base import RouterError

_PATHS: Final = ("/server_info", "/get_server_info")  # the second is its name of old
_TIMEOUT_S: Final = 10.0  # it asks its scheduler, which may be busy
_ANSWER_MAX: Final = 4 * 1024 * 1024


async def ask_role(address: Address) -> ReplicaRole:
    """Raises RouterError when it does not tell, or not yet."""
    import aiohttp  # not above: `gatewayd check` knows this module and asks nobody

    unix = isinstance(address, UnixAddress)
    connector = aiohttp.UnixConnector(address.path) if isinstance(address, UnixAddress) else None
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    base = "http://localhost" if unix else f"http://{address}"
    path = ""
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            for path in _PATHS:
                async with session.get(base + path, allow_redirects=False) as response:
                    if response.status in (404, 405) and path != _PATHS[-1]:
                        continue
                    if response.status != 200:
                        raise RouterError(f"GET {path}: {response.status}")
                    return read_role(path, await _whole(response, path))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise RouterError(f"GET {path}: {str(error) or type(error).__name__}") from error
    raise AssertionError  # the last path answers or raises


async def _whole(response: Any, path: str) -> bytes:
    answer = bytearray()
    async for piece in response.content.iter_any():
        answer += piece
        if len(answer) > _ANSWER_MAX:
            raise RouterError(f"GET {path}: more than {_ANSWER_MAX} bytes")
    return bytes(answer)


def read_role(path: str, answer: bytes) -> ReplicaRole:
    try:
        info = json.loads(answer)
    except ValueError:
        info = None
    if not isinstance(info, dict):
        raise RouterError(f"GET {path}: it is not a JSON object")
    status = info.get("status", "ready")
    if status not in ("ready", None):
        raise RouterError(f"GET {path}: it is {str(status)[:40]!r}, not ready")
    mode = info.get("disaggregation_mode")
    if mode == "decode":
        return ReplicaRole("decode")
    if mode != "prefill":
        return ReplicaRole("regular")
    port = info.get("disaggregation_bootstrap_port")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise RouterError(f"GET {path}: a prefill whose disaggregation_bootstrap_port is {port!r}")
    return ReplicaRole("prefill", port)
