"""Models and entrypoints through the registry: what of them is published, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gateway import FILE, Gateway, running, write

from gatewayd.core.entrypoint import OpenAiFormat, TgiFormat
from gatewayd.core.snapshot import EntrypointTarget, Snapshot

OK = (200, {"status": "ok"})
PROJECT = "/api/registry/Main"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with running(tmp_path) as gateway:
        yield gateway


def service(name: str = "chat", **more: Any) -> dict[str, Any]:
    return {
        "run_name": name,
        "domain": f"{name}.example.com",
        "https": False,
        "auth": False,
        "client_max_body_size": 1 << 20,
        "options": {},
        "ssh_private_key": "x",
        **more,
    }


def openai(name: str = "m", **more: Any) -> dict[str, Any]:
    model = {"type": "chat", "name": name, "format": "openai", "prefix": "/v1", **more}
    return {"options": {"openai": {"model": model}}}


TGI = {"format": "tgi", "chat_template": "{{ messages }}", "eos_token": "</s>"}


def snapshot(gateway: Gateway) -> Snapshot:
    return gateway.control.parts.publisher._compiler.snapshot(0)


def published(gateway: Gateway, domain: str = "gateway.example.com") -> EntrypointTarget:
    return snapshot(gateway).entrypoints[domain]


async def register(gateway: Gateway, body: dict[str, Any]) -> tuple[int, Any]:
    return await gateway.post(f"{PROJECT}/services/register", body)


async def open_endpoint(gateway: Gateway, domain: str = "Gateway.Example.com") -> None:
    body = {"domain": domain, "https": False, "new_field": 1}
    assert await gateway.post(f"{PROJECT}/entrypoints/register", body) == OK


async def test_models_of_registered_services(gateway: Gateway) -> None:
    await open_endpoint(gateway)
    assert published(gateway).models == ()
    assert await register(gateway, service(**openai(prefix="/llm"))) == OK
    assert await register(gateway, service("text", **openai("t", **TGI))) == OK
    m, t = published(gateway).models
    assert (m.name, m.format, m.target.service.name) == ("m", OpenAiFormat("/llm"), "chat")
    assert (t.name, t.format) == ("t", TgiFormat("{{ messages }}", "</s>"))
    assert m.created > 1_700_000_000
    assert m.target.service.cors is not None
    assert t.target.service.cors is None
    assert await gateway.post(f"{PROJECT}/services/chat/unregister") == OK
    assert [model.name for model in published(gateway).models] == ["t"]


async def test_a_name_is_its_last_service_s(gateway: Gateway) -> None:
    await open_endpoint(gateway)
    assert await register(gateway, service("one", **openai())) == OK
    assert await register(gateway, service("two", **openai())) == OK
    (model,) = published(gateway).models
    assert model.target.service.name == "two"
    assert await gateway.post(f"{PROJECT}/services/one/unregister") == OK
    (model,) = published(gateway).models
    assert model.target.service.name == "two"


async def test_projects_have_models_of_their_own(gateway: Gateway) -> None:
    await open_endpoint(gateway)
    body = {"domain": "gateway.other.org", "https": False}
    assert await gateway.post("/api/registry/other/entrypoints/register", body) == OK
    assert await register(gateway, service(**openai())) == OK
    assert [model.name for model in published(gateway).models] == ["m"]
    assert published(gateway, "gateway.other.org").models == ()


async def test_the_last_entrypoint_of_a_project_counts(gateway: Gateway) -> None:
    await open_endpoint(gateway)
    await open_endpoint(gateway)
    await open_endpoint(gateway, "models.example.org")
    assert list(snapshot(gateway).entrypoints) == ["models.example.org"]


async def test_a_host_is_that_of_the_project_which_came_last(gateway: Gateway) -> None:
    body = {"domain": "gateway.example.com", "https": False}
    await open_endpoint(gateway)
    assert await gateway.post("/api/registry/other/entrypoints/register", body) == OK
    assert published(gateway).project == "other"
    await open_endpoint(gateway)
    assert published(gateway).project == "main"


async def test_a_domain_leads_to_a_service_or_to_models(gateway: Gateway) -> None:
    await open_endpoint(gateway)
    status, answer = await register(gateway, service("gateway"))
    assert status == 400
    assert "gateway.example.com" in answer["detail"]
    body = {"domain": "llama.example.com", "https": False}
    status, answer = await gateway.post(f"{PROJECT}/entrypoints/register", body)
    assert status == 400
    assert "llama.example.com" in answer["detail"]


async def test_models_of_the_file_are_the_file_s(tmp_path: Path) -> None:
    text = FILE.replace("name: llama", "name: llama\n    model: m") + (
        "model_endpoint: {{domain: models.example.com}}\n"
    )
    async with running(tmp_path, text) as gateway:
        assert await register(gateway, service(**openai())) == OK
        assert await register(gateway, service("more", **openai("n"))) == OK
        m, n = published(gateway, "models.example.com").models
        assert (m.target.service.name, n.target.service.name) == ("llama", "more")


async def test_a_reload_moves_the_file_s_endpoint_and_keeps_the_registry_s(tmp_path: Path) -> None:
    text = FILE + "model_endpoint: {{domain: models.example.com}}\n"
    async with running(tmp_path, text) as gateway:
        await open_endpoint(gateway)
        write(tmp_path, text.replace("models.example", "all.example"))
        status, answer = await gateway.post("/api/reload")
        assert (status, answer["changes"]) == (
            200,
            ["model_endpoint.domain: models.example.com -> all.example.com"],
        )
        hosts = set(snapshot(gateway).entrypoints)
        assert hosts == {"gateway.example.com", "all.example.com"}
        write(tmp_path, text.replace("models.example", "gateway.example"))
        assert (await gateway.post("/api/reload"))[0] == 200  # one host, one project: no matter
        write(tmp_path, FILE.replace("name: llama", "name: gateway"))
        status, answer = await gateway.post("/api/reload")
        assert status == 400
        assert "gateway.example.com" in answer["detail"]


@pytest.mark.parametrize(
    "more",
    [
        {"options": {"openai": {}}},
        {"options": {"openai": {"model": {"type": "chat"}}}},
        openai(type="completions"),
        openai(format="other"),
        openai(format="tgi"),
        openai(format="tgi", chat_template="x"),
        openai(""),
        {"has_router_replica": "perhaps"},
    ],
)
async def test_what_is_no_model(gateway: Gateway, more: dict[str, Any]) -> None:
    status, answer = await register(gateway, service(**more))
    assert status == 422
    assert answer["detail"][0].keys() >= {"type", "loc", "msg", "input"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"https": False}, 422),
        ({"domain": "x.org"}, 422),
        ({"domain": "not a domain", "https": False}, 422),
        ({"domain": "x.org", "https": True}, 400),
        ([], 422),
    ],
)
async def test_what_is_no_entrypoint(gateway: Gateway, body: Any, status: int) -> None:
    assert (await gateway.post(f"{PROJECT}/entrypoints/register", body))[0] == status
    assert not gateway.control.parts.state.entrypoints


async def test_replicas_that_are_routers(gateway: Gateway) -> None:
    assert await register(gateway, service(has_router_replica=True)) == OK
    target = snapshot(gateway).targets["chat.example.com"]
    assert target.allowed_paths == ("/generate", "/chat/completions", "/v1/")
