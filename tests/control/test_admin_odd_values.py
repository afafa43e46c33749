"""Whatever a caller writes into a field is refused, or it can be served, saved and read again."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from gateway import Gateway, running

from gatewayd.config.load import load_config
from gatewayd.config.model import Config
from gatewayd.control.api.replies import InvalidBodyError, validate
from gatewayd.control.api.schemas import RegisterServiceBody, to_service
from gatewayd.control.conflicts import RefusedError
from gatewayd.control.records import Encoder, decode
from gatewayd.control.saved import Saved
from gatewayd.core.model import Service, Upstream
from gatewayd.core.packing import Packer
from gatewayd.core.snapshot import compile_snapshot

MAIN = "/api/registry/main/services"
OK = (200, {"status": "ok"})
LIMIT = {"prefix": "/", "key": {"type": "header", "header": "X-A"}, "rps": 1.5, "burst": 3}
WHOLE: dict[str, Any] = {
    "run_name": "odd",
    "domain": "odd.example.com",
    "https": False,
    "id": "9a" * 16,
    "ssh_private_key": "PROJECT KEY",
    "auth": False,
    "client_max_body_size": 67108864,
    "options": {
        "openai": {"model": {"type": "chat", "name": "m", "format": "openai", "prefix": "/v1"}}
    },
    "rate_limits": [LIMIT],
    "read_timeout": 300,
    "router": {
        "type": "sglang",
        "policy": "cache_aware",
        "steer_timeout": 1,
        "steer_body_limit": "1MiB",
        "routing_key_header": "x-key",
        "pd_disaggregation": False,
        "args": {"a": 1},
    },
    "has_router_replica": False,
    "strip_prefix": "/a",
    "allowed_paths": ["/v1/"],
    "timeouts": {"connect": 1, "first_byte": "2s", "idle": 3, "total": None},
    "balance": "random",
    "cors": {"origins": ["*"], "methods": ["GET"], "headers": ["*"], "max_age": 5},
    "debug_headers": False,
}
TGI = {"type": "chat", "name": "m", "format": "tgi", "chat_template": "t", "eos_token": "e"}
ODD: list[Any] = [
    *(float("nan"), float("inf"), -float("inf"), 1e308, 1e-308, 1e18, 10**400, -(10**400), 2**63),
    *(-1, 0, 1, True, None, "", "\0", "a\r\nb: c", "x" * 5000, "9" * 400 + "s", "9" * 400 + "GiB"),
    *("inf", "NaN", "-1s", "/", "//", "/../", "*", "\u00e9", [], {}, [None], {"a": 1}),
]

pytestmark = pytest.mark.asyncio(loop_scope="module")


def bodies() -> Iterator[Any]:
    """Each of ODD in the place of each part of a registration."""
    tgi = {**WHOLE, "options": {"openai": {"model": TGI}}}
    no_timeouts = {key: value for key, value in WHOLE.items() if key != "timeouts"}
    for whole in (WHOLE, tgi, no_timeouts):
        for place in places(whole):
            for odd in ODD:
                body = copy.deepcopy(whole)
                inside: Any = body
                for step in place[:-1]:
                    inside = inside[step]
                inside[place[-1]] = odd
                yield json.loads(json.dumps(body))  # as it comes from the wire


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in inside:
        if isinstance(entry, dict | list):
            yield from places(entry, (*at, key))
        else:
            yield (*at, key)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(home: Path) -> AsyncIterator[Gateway]:
    async with running(home) as gateway:
        yield gateway


async def test_what_is_accepted_can_be_served_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("domain: example.com\nauth: {type: dstack}\n")
    config = load_config(str(path), {})
    accepted = 0
    for body in bodies():
        service = read(body, config)
        if service is None:
            continue
        accepted += 1
        kept = Saved(services={service.key: service})
        snapshot = compile_snapshot(1, [service], {service.key: Upstream(())}, auth=None)
        Packer().pack(snapshot)
        again, faults = decode(Encoder().encode(kept))
        assert not faults, body
        assert again.services == kept.services, body
    assert accepted > 100


def read(body: Any, config: Config) -> Service | None:
    """None when it is refused, in JSON."""
    try:
        return to_service("main", validate(body, RegisterServiceBody, "body"), config)
    except InvalidBodyError as error:
        json.dumps(error.errors, allow_nan=False)
    except RefusedError:
        pass
    return None


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"rate_limits": [LIMIT | {"rps": float("inf")}]}, ["body", "rate_limits", 0, "rps"]),
        ({"rate_limits": [LIMIT | {"rps": float("nan")}]}, ["body", "rate_limits", 0, "rps"]),
        ({"client_max_body_size": -1}, ["body", "client_max_body_size"]),
        ({"timeouts": {"idle": float("inf")}}, ["body", "timeouts", "idle"]),
        ({"cors": {"methods": ["GET\r\nX: y"]}}, ["body", "cors", "CorsBody", "methods", 0]),
    ],
)
async def test_values_that_are_422(gateway: Gateway, change: Any, loc: list[Any]) -> None:
    body = {"run_name": "odd", "domain": "odd.example.com", **change}
    async with gateway.http.post(f"{gateway.base}{MAIN}/register", json=body) as answer:
        assert answer.status == 422
        text = await answer.text()
    (fault,) = [
        each
        for each in json.loads(text, parse_constant=pytest.fail)["detail"]
        if each["loc"][: len(loc)] == loc
    ]
    assert fault["type"]


@pytest.mark.parametrize(
    "change",
    [
        {"rate_limits": [LIMIT | {"rps": 1e308, "burst": 10**400}]},
        {"rate_limits": [LIMIT | {"rps": (2**63 - 1) // 60, "burst": 2**63 - 1}]},
        {"read_timeout": 10**400},
        {"read_timeout": -1},
        {"client_max_body_size": 10**400},
    ],
)
async def test_large_numbers_are_no_bound(gateway: Gateway, change: Any) -> None:
    body = {"run_name": "odd", "domain": "odd.example.com", **change}
    assert await gateway.post(f"{MAIN}/register", body) == OK
    # What cannot be delivered to the workers would stop every call after it.
    assert await gateway.post(f"{MAIN}/odd/unregister") == OK


async def test_no_bound_of_bodies(gateway: Gateway) -> None:
    """0 is none, as it was to the proxy that servers have written it for."""
    body = {"run_name": "odd", "domain": "odd.example.com", "client_max_body_size": 0}
    assert await gateway.post(f"{MAIN}/register", body) == OK
    assert gateway.control.parts.state.services["main/odd"].client_max_body_size >= 1 << 50
    assert await gateway.post(f"{MAIN}/odd/unregister") == OK


@pytest.mark.parametrize("field", ["run_name", "domain", "id", "ssh_private_key", "model"])
async def test_halves_of_characters(gateway: Gateway, field: str) -> None:
    text = json.dumps({"run_name": "odd", "domain": "odd.example.com"} | {field: "HALF"})
    async with gateway.http.post(
        f"{gateway.base}{MAIN}/register",
        data=text.replace("HALF", "a\\ud800b"),
        headers={"Content-Type": "application/json"},
    ) as answer:
        assert answer.status == 422
        assert (await answer.json())["detail"][0]["type"] == "json_invalid"


async def test_keys_are_not_told_again(gateway: Gateway) -> None:
    body = {"run_name": "odd", "domain": "odd.example.com", "ssh_private_key": ["SECRET"]}
    status, answer = await gateway.post(f"{MAIN}/register", body)
    assert (status, answer["detail"][0]["loc"]) == (422, ["body", "ssh_private_key"])
    assert "SECRET" not in str(answer)
