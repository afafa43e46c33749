"""What a replica says of itself, read as strictly as it matters."""

from __future__ import annotations

import re
from typing import Any

import pytest
from aiohttp import web
from fake_engine import FakeEngine

from gatewayd.core.model import ReplicaRole, TcpAddress
from gatewayd.routers.base import RouterError
from gatewayd.routers.http_roles import ask_role

PREFILL = {"disaggregation_mode": "prefill", "disaggregation_bootstrap_port": 8998}


async def asked(answers: dict[str, web.Response]) -> ReplicaRole:
    async with FakeEngine(answers=answers) as engine:
        return await ask_role(TcpAddress(engine.host, engine.port))


@pytest.mark.parametrize(
    ("info", "role"),
    [
        (PREFILL, ReplicaRole("prefill", 8998)),
        (PREFILL | {"status": "ready"}, ReplicaRole("prefill", 8998)),
        ({"disaggregation_mode": "decode", "status": "ready"}, ReplicaRole("decode")),
        ({"disaggregation_mode": "null"}, ReplicaRole("regular")),
        ({"disaggregation_mode": None}, ReplicaRole("regular")),
        ({"model_path": "m"}, ReplicaRole("regular")),
    ],
)
async def test_roles(info: dict[str, Any], role: ReplicaRole) -> None:
    assert await asked({"/server_info": web.json_response(info)}) == role


async def test_the_name_of_old_is_asked_when_there_is_no_other() -> None:
    gone = web.json_response({"detail": "Not Found"}, status=404)
    answers = {"/server_info": gone, "/get_server_info": web.json_response(PREFILL)}
    assert await asked(answers) == ReplicaRole("prefill", 8998)
    with pytest.raises(RouterError, match=re.escape("GET /get_server_info: 404")):
        await asked({"/server_info": gone, "/get_server_info": gone})


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (web.json_response(PREFILL | {"status": "starting"}), "it is 'starting', not ready"),
        (web.json_response({"disaggregation_mode": "prefill"}), "bootstrap_port is None"),
        (web.json_response(PREFILL | {"disaggregation_bootstrap_port": True}), "is True"),
        (web.json_response(PREFILL | {"disaggregation_bootstrap_port": 99999}), "is 99999"),
        (web.json_response([PREFILL]), "not a JSON object"),
        (web.Response(text="hello"), "not a JSON object"),
        (web.Response(status=503), "GET /server_info: 503"),
        (web.Response(status=307, headers={"Location": "http://h/"}), "GET /server_info: 307"),
        (web.Response(body=b" " * (5 << 20)), "more than 4194304 bytes"),
    ],
)  # fmt: skip
async def test_what_does_not_tell(answer: web.Response, fault: str) -> None:
    with pytest.raises(RouterError, match=re.escape(fault)):
        await asked({"/server_info": answer})


async def test_one_that_is_not_there() -> None:
    engine = FakeEngine()
    await engine.start()
    await engine.stop()
    with pytest.raises(RouterError, match=r"GET /server_info: .*Connect call failed"):
        await ask_role(TcpAddress(engine.host, engine.port))
