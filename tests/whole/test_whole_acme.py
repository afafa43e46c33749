"""Certificates by ACME, of a real authority that validates against real listeners."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from free_ports import free_range
from pebble import Pebble
from waiting import until
from whole_gateway import Gateway, gatewayd
from whole_replicas import Replica


def configured(home: Path, pebble: Pebble, http: int, https: int, **more: Any) -> dict[str, Any]:
    return {
        "domain": "gw.test",
        "listen": {
            "http": f"127.0.0.1:{http}",
            "https": f"127.0.0.1:{https}",
            "admin": f"unix:{home}/admin.sock",
        },
        "certificate": {
            "type": "acme",
            "server": pebble.directory,
            "ca_file": str(pebble.ca_file),
            **more,
        },
    }


@asynccontextmanager
async def secured(
    home: Path,
    services: list[str],
    *,
    pebble_options: dict[str, Any] | None = None,
    **acme: Any,
) -> AsyncIterator[tuple[Gateway, Pebble, Replica]]:
    http, https = free_range(2)
    replica = Replica("chat", home / "chat.sock")
    async with Pebble(home, http, https, **(pebble_options or {})) as pebble:
        if acme.pop("hook", False):
            acme["dns_hook"] = str(pebble.hook())
        gateway = Gateway(
            home,
            [{"name": name, "replicas": [f"unix:{replica.path}"]} for name in services],
            **configured(home, pebble, http, https, **acme),
        )
        async with replica, gateway:
            yield gateway, pebble, replica


async def shown(gateway: Gateway, host: str, trust: ssl.SSLContext) -> dict[str, Any]:
    """The certificate that a client of this host gets, after a request went through."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", gateway.tls_port, ssl=trust, server_hostname=host
    )
    try:
        writer.write(f"GET /who HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200"), answer
        found: dict[str, Any] = writer.get_extra_info("peercert")
        return found
    finally:
        writer.close()


async def served(gateway: Gateway, host: str, trust: ssl.SSLContext) -> dict[str, Any]:
    async def there() -> dict[str, Any]:
        try:
            return await shown(gateway, host, trust)
        except (ssl.SSLError, ConnectionError):
            return {}

    return await until(there, f"{host} is served")


def names(certificate: dict[str, Any]) -> list[str]:
    return [value for kind, value in certificate["subjectAltName"] if kind == "DNS"]


@pytest.mark.parametrize("challenge", ["http-01", "tls-alpn-01"])
async def test_services_of_the_file_get_certificates(tmp_path: Path, challenge: str) -> None:
    # A quarter of all nonces is refused.
    options = {"env": {"PEBBLE_WFE_NONCEREJECT": "25"}}
    async with secured(
        tmp_path, ["chat", "code"], pebble_options=options, challenges=[challenge]
    ) as (gateway, pebble, _):
        trust = await pebble.root()
        assert names(await served(gateway, "chat.gw.test", trust)) == ["chat.gw.test"]
        assert names(await served(gateway, "code.gw.test", trust)) == ["code.gw.test"]
        metrics = await gateway.metrics()
        end = metrics.total("gatewayd_certificate_expiry_timestamp_seconds", domain="chat.gw.test")
        assert 89 < (end - time.time()) / 86400 < 91
        folder = tmp_path / "state/certificates"
        assert sorted(p.name for p in folder.iterdir()) == [
            *("accounts", "chat.gw.test.pem", "code.gw.test.pem"),
        ]
        for path in (*folder.glob("*.pem"), *folder.glob("accounts/*")):
            assert path.stat().st_mode & 0o777 == 0o600, path
        assert "PRIVATE KEY" not in gateway.read_log()


async def test_a_registration_waits_for_its_certificate_or_leaves_nothing(tmp_path: Path) -> None:
    keys = {"kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}
    options = {"externalAccountBindingRequired": True, "externalAccountMACKeys": keys}
    async with secured(tmp_path, [], pebble_options=options) as (gateway, pebble, replica):
        trust = await pebble.root()
        body = {"run_name": "late", "domain": "late.gw.test", "https": True, "auth": False}
        # Without a binding the authority makes no account.
        status, answer = await register(gateway, body)
        assert status == 400
        assert answer["detail"].startswith("Could not obtain late.gw.test TLS certificate in ")
        assert "Make sure DNS records are configured for this gateway." in answer["detail"]
        assert "set `eab_kid` and `eab_hmac_key`" in answer["detail"]

        config = {
            "acme_server": pebble.directory,
            "acme_eab_kid": "kid-1",
            "acme_eab_hmac_key": keys["kid-1"],
        }
        wrong = config | {"acme_eab_hmac_key": keys["kid-1"][::-1]}
        assert (await gateway.call("POST", "/api/config", wrong))[0] == 200
        status, answer = await register(gateway, body)
        assert status == 400
        assert "are `eab_kid` and `eab_hmac_key` as it handed them out?" in answer["detail"]

        assert (await gateway.call("POST", "/api/config", config))[0] == 200
        status, answer = await register(gateway, body)
        assert (status, answer) == (200, {"status": "ok"})
        await gateway.add("late", "a", replica.path)
        # Answered: so it is served, and plain HTTP leads there.
        assert names(await shown(gateway, "late.gw.test", trust)) == ["late.gw.test"]

        await pebble.resolve("lost.gw.test", "127.0.0.77")
        body |= {"run_name": "lost", "domain": "lost.gw.test"}
        status, answer = await register(gateway, body)
        assert status == 400
        assert "Could not obtain lost.gw.test TLS certificate in " in answer["detail"]
        assert "is port 80 (http-01) or 443 (tls-alpn-01) open" in answer["detail"]
        found = await gateway.status()
        assert [s["name"] for s in found["services"]] == ["late"]
        gateway.allow("no certificate for (late|lost).gw.test")
        assert not list((tmp_path / "state/certificates").glob("lost*"))
        assert keys["kid-1"] not in gateway.read_log()

        body = {"domain": "gateway.gw.test", "https": True}
        status, answer = await gateway.call("POST", "/api/registry/main/entrypoints/register", body)
        assert status == 200, answer
        assert len((await gateway.status())["certificates"]) == 2

        # What is on disk serves a next life, with no authority at all.
        await pebble.stop()
        await gateway.stop()
        await gateway.start()
        assert names(await shown(gateway, "late.gw.test", trust)) == ["late.gw.test"]

        # Nobody is to be alarmed by the end of one that nobody wants any more.
        family = "gatewayd_certificate_expiry_timestamp_seconds"

        async def alarmed() -> bool:
            return (await gateway.metrics()).total(family, domain="late.gw.test") > 0

        await until(alarmed, "the name's end is told")
        path = "/api/registry/main/services/late/unregister"
        assert (await gateway.call("POST", path))[0] == 200

        async def calm() -> bool:
            return not await alarmed()

        await until(calm, "it is not told any more")
        assert len((await gateway.status())["certificates"]) == 2


async def register(gateway: Gateway, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    body = {"client_max_body_size": 1024, "options": {}, "ssh_private_key": "", **body}
    return await gateway.call("POST", "/api/registry/main/services/register", body)


async def test_one_wildcard_for_all_and_what_operators_ask(tmp_path: Path) -> None:
    async with secured(tmp_path, ["chat", "code"], hook=True, names="*.gw.test") as (
        gateway,
        pebble,
        _,
    ):
        trust = await pebble.root()
        first = await served(gateway, "chat.gw.test", trust)
        assert names(first) == ["*.gw.test"]
        assert (await shown(gateway, "code.gw.test", trust)) == first
        admin = ("--admin", f"unix:{gateway.admin_path}")

        code, out, _ = await gatewayd("certs", "list", *admin)
        assert code == 0
        assert out.splitlines()[1].split()[:2] == ["*.gw.test", "Pebble"]

        code, out, err = await gatewayd("certs", "renew", "code.gw.test", *admin)
        assert code == 0, err
        second = await shown(gateway, "chat.gw.test", trust)
        assert second["serialNumber"] != first["serialNumber"]

        code, out, err = await gatewayd(
            *("certs", "revoke", "*.gw.test", "--reason", "key-compromise", *admin)
        )
        assert (code, out) == (
            *(0, "the certificate of *.gw.test is revoked; another one is served\n"),
        ), err
        third = await shown(gateway, "chat.gw.test", trust)
        assert third["serialNumber"] not in (first["serialNumber"], second["serialNumber"])
        assert await revoked(pebble, second["serialNumber"])
        assert not await revoked(pebble, third["serialNumber"])

        code, _, err = await gatewayd("certs", "renew", "else.test", *admin)
        assert (code, err) == (
            *(1, "gatewayd: There is no certificate of an authority for else.test\n"),
        )


async def revoked(pebble: Pebble, serial: str) -> bool:
    answer = await pebble.management("GET", f"cert-status-by-serial/{serial.lower()}")
    return bool(json.loads(answer)["Status"] == "Revoked")


async def test_renewed_again_and_again_while_traffic_runs(tmp_path: Path) -> None:
    """Certificates of 6 seconds: each is renewed after 4."""
    async with secured(tmp_path, ["chat"], pebble_options={"valid_s": 6}) as (gateway, pebble, _):
        trust = await pebble.root()
        await served(gateway, "chat.gw.test", trust)
        seen: dict[str, int] = {}

        async def client() -> None:
            while len(seen) < 3:
                certificate = await shown(gateway, "chat.gw.test", trust)
                serial = str(certificate["serialNumber"])
                seen[serial] = seen.get(serial, 0) + 1
                await asyncio.sleep(0.02)

        async with asyncio.timeout(40):
            await asyncio.gather(*(client() for _ in range(4)))
        assert sum(seen.values()) > 50
        gateway.allow("expires in 0.0 days and was not renewed")


@pytest.mark.slow
async def test_20_names_at_once_disturb_nobody(tmp_path: Path) -> None:
    """Figures of its run are printed: pytest -m slow -s."""
    http, https = free_range(2)
    replica = Replica("plain", tmp_path / "plain.sock")
    async with Pebble(tmp_path, http, https) as pebble:
        gateway = Gateway(
            tmp_path,
            [{"name": "plain", "https": False, "replicas": [f"unix:{replica.path}"]}],
            **configured(tmp_path, pebble, http, https),
        )
        async with replica, gateway:
            before = await latencies(gateway, asyncio.sleep(5))
            began = time.monotonic()
            during = await latencies(
                gateway,
                asyncio.gather(
                    *(
                        register(
                            gateway,
                            {
                                "run_name": f"n{i}",
                                "domain": f"n{i}.gw.test",
                                "https": True,
                                "auth": False,
                            },
                        )
                        for i in range(20)
                    )
                ),
            )
            took = time.monotonic() - began
            after = await latencies(gateway, asyncio.sleep(5))
            assert len((await gateway.status())["services"]) == 21
            assert len((await gateway.status())["certificates"]) == 20
    calm = max(p99(before), p99(after))
    print(
        f"\n20 names in {took:.1f} s; p99 {p99(before):.1f} ms before, {p99(during):.1f} ms "
        f"meanwhile ({len(during)} requests), {p99(after):.1f} ms after"
    )
    assert took <= 20
    assert p99(during) - calm <= 5


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)] * 1000


async def latencies(gateway: Gateway, work: Awaitable[object]) -> list[float]:
    """Of requests to a service that has nothing to do with it, one each 5 ms, until it is done."""
    taken: list[float] = []
    over = asyncio.ensure_future(work)
    async with aiohttp.ClientSession() as http:
        while not over.done():
            began = time.perf_counter()
            async with http.get(gateway.url + "/who", headers={"Host": "plain.gw.test"}) as answer:
                assert answer.status == 200
                await answer.read()
            taken.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)
    await over
    return taken


async def test_a_reload_asks_for_what_is_new_and_keeps_what_is_there(tmp_path: Path) -> None:
    async with secured(tmp_path, ["chat"]) as (gateway, pebble, replica):
        trust = await pebble.root()
        first = await served(gateway, "chat.gw.test", trust)
        new = {"name": "code", "replicas": [f"unix:{replica.path}"]}
        gateway.config["services"].append(new)
        gateway.config["certificate"]["email"] = "ops@gw.test"
        gateway.write_file()
        code, out, err = await gatewayd("reload", "--admin", f"unix:{gateway.admin_path}")
        assert code == 0, err
        assert "certificate.email: null -> ops@gw.test" in out
        assert names(await served(gateway, "code.gw.test", trust)) == ["code.gw.test"]
        assert await shown(gateway, "chat.gw.test", trust) == first


async def test_a_client_that_comes_before_the_certificate_waits_for_it(tmp_path: Path) -> None:
    async with secured(tmp_path, ["chat"]) as (gateway, pebble, replica):
        trust = await pebble.root()
        clients = [shown(gateway, "chat.gw.test", trust) for _ in range(8)]  # on all workers
        for certificate in await asyncio.gather(*clients):
            assert names(certificate) == ["chat.gw.test"]
        for nobodys in ("else.gw.test", "gw.test"):
            with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
                await shown(gateway, nobodys, trust)

        # Its DNS is wrong at first: until it is mended there is nothing to wait for.
        await pebble.resolve("code.gw.test", "127.0.0.77")
        gateway.allow("no certificate for code.gw.test")
        gateway.config["services"].append({"name": "code", "replicas": [f"unix:{replica.path}"]})
        gateway.write_file()
        code, _, err = await gatewayd("reload", "--admin", f"unix:{gateway.admin_path}")
        assert code == 0, err
        with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
            await shown(gateway, "code.gw.test", trust)
        await pebble.resolve("code.gw.test", "127.0.0.1")
        # The next try would be in a minute.
        assert names(await served(gateway, "code.gw.test", trust)) == ["code.gw.test"]
        log = gateway.read_log()
        assert log.count("code.gw.test is asked for now: a client came for it") == 1
        assert log.count("no certificate for code.gw.test") == 1

        async def counted() -> bool:
            metrics = await gateway.metrics()
            held = metrics.total("gatewayd_handshakes_held_total", outcome="served")
            return held == 9 and metrics.total("gatewayd_handshakes_held_total") == 10

        await until(counted)
