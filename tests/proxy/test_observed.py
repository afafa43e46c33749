"""What is seen of a request afterwards: its access line and its counts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from bisect import bisect_left
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from conversation import get, post, reply
from harness import Gateway
from waiting import until

from gatewayd.core.model import Log, RateLimit, Timeouts, Token, TokensAuth
from gatewayd.core.stats import DURATION_BOUNDS, TTFB_BOUNDS
from gatewayd.proxy.accesslog import AccessLog

FIELDS = [
    "time",
    "request_id",
    "client",
    "service",
    "replica",
    "via",
    "method",
    "path",
    "status",
    "bytes_in",
    "bytes_out",
    "seconds_to_first_byte",
    "seconds",
    "closed_by",
]


@pytest.fixture
def access_log(tmp_path: Path, request: pytest.FixtureRequest) -> Log:
    return Log(access=str(tmp_path / "access.log"), format=getattr(request, "param", "json"))


as_text = pytest.mark.parametrize("access_log", ["text"], indirect=True)


def lines(gateway: Gateway) -> list[str]:
    gateway.edge.access_log.close()
    return (gateway.directory / "access.log").read_text().splitlines()


def records(gateway: Gateway) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines(gateway)]


async def test_a_json_line_has_every_field(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply(b"0123456789")
    client = await gateway.client()
    answer = await client.ask(post(b"hello", "/v1/x?secret=1"))
    (record,) = records(gateway)
    assert list(record) == FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(record["time"]))
    assert abs(datetime.fromisoformat(str(record["time"])).timestamp() - time.time()) < 5
    assert record["request_id"] == answer["X-Request-Id"]
    assert (record["client"], record["service"], record["replica"]) == (
        "127.0.0.1",
        "chat",
        "chat-a",
    )
    assert (record["via"], record["method"], record["path"]) == ("direct", "POST", "/v1/x")
    assert (record["status"], record["bytes_in"], record["bytes_out"]) == (200, 5, 10)
    assert isinstance(record["seconds"], float)
    assert isinstance(record["seconds_to_first_byte"], float)
    assert 0 < record["seconds_to_first_byte"] <= record["seconds"] < 5
    assert record["closed_by"] == "-"


@as_text
async def test_a_text_line_has_them_in_order(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply(b"0123456789")
    client = await gateway.client()
    answer = await client.ask(post(b"hello", "/v1/x?secret=1"))
    (line,) = lines(gateway)
    found = re.fullmatch(
        r'(\S+) 127\.0\.0\.1 chat chat-a direct "POST /v1/x" 200 5 10 (\S+) (\S+) - (\S+)', line
    )
    assert found is not None, line
    assert found.group(4) == answer["X-Request-Id"]
    assert float(found.group(2)) <= float(found.group(3))


@as_text
async def test_a_path_cannot_forge_a_line(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    await client.ask(get('/a"b%0a%22'))
    await client.ask(get("/x", host="none.example"))
    first, second = lines(gateway)
    assert first.count('"') == 2
    assert "/a%22b%0a%22" in first
    assert ' - - - "GET /x" 404 ' in second


async def test_a_token_is_known_by_its_name_alone(gateway: Gateway) -> None:
    gateway.auth = TokensAuth((Token("alice", hashlib.sha256(b"sesame").digest()),))
    replica = await gateway.serve(auth=True)
    replica.answers = reply()
    client = await gateway.client()
    await client.ask(get("/", "Authorization: Bearer sesame"))
    await client.ask(get("/", "Authorization: Bearer other"))
    first, second = records(gateway)
    assert first["token"] == "alice"  # noqa: S105
    assert "token" not in second
    assert "sesame" not in "".join(map(str, first.values()))


@as_text
async def test_a_text_line_ends_with_the_name_of_the_token(gateway: Gateway) -> None:
    gateway.auth = TokensAuth((Token("alice", hashlib.sha256(b"sesame").digest()),))
    replica = await gateway.serve(auth=True)
    replica.answers = reply()
    client = await gateway.client()
    answer = await client.ask(get("/", "Authorization: Bearer sesame"))
    (line,) = lines(gateway)
    assert line.endswith(f" - {answer['X-Request-Id']} alice")


async def test_services_of_other_projects_are_told_apart(gateway: Gateway) -> None:
    await gateway.serve_by(0, "one")
    await gateway.serve_by(0, "two")
    gateway.services["two"] = replace(gateway.services["two"], project="other")
    gateway.publish()
    client = await gateway.client()
    await client.ask(get(host="one.example"))
    await client.ask(get(host="two.example"))
    assert [record["service"] for record in records(gateway)] == ["one", "other/two"]


async def test_a_request_that_could_not_be_read_has_a_line_too(gateway: Gateway) -> None:
    await gateway.serve()
    client = await gateway.client()
    answer = await client.ask(get("/", "Host: twice"))
    client = await gateway.client()
    await client.send(get("/", "Bad : field"))
    unread = await client.message()
    first, second = records(gateway)
    assert (first["status"], first["request_id"]) == (400, answer["X-Request-Id"])
    assert (second["status"], second["request_id"]) == (400, unread["X-Request-Id"])
    assert (second["client"], second["method"], second["path"]) == ("127.0.0.1", "-", "-")


@pytest.mark.parametrize(
    ("ending", "status", "closed_by"),
    [
        ("whole", 200, "-"),
        ("until eof", 200, "-"),
        ("client gone early", 499, "client"),
        ("client gone midstream", 200, "client"),
        ("client broke its body", 400, "client"),
        ("replica refuses", 502, "upstream"),
        ("replica gone early", 502, "upstream"),
        ("replica gone midstream", 200, "upstream"),
        ("replica silent", 504, "upstream"),
        ("body too large", 413, "gateway"),
        ("body stops", 408, "gateway"),
        ("refused", 429, "-"),
    ],
)
async def test_who_ended_it_first(
    gateway: Gateway, ending: str, status: int, closed_by: str
) -> None:
    gateway.limit(body_idle_timeout=0.05)
    replica = await gateway.serve(
        client_max_body_size=10,
        timeouts=Timeouts(first_byte=0.05) if ending == "replica silent" else Timeouts(),
        rate_limits=(RateLimit("/limited", 0.1, 0),),
    )
    client = await gateway.client()
    counted = 1
    if ending == "refused":
        replica.answers = reply()
        await client.ask(get("/limited"))
        await client.ask(get("/limited"))
        counted = 2
    elif ending == "replica refuses":
        replica.stop_listening()
        await client.ask(get())
    elif ending in ("client broke its body", "body too large", "body stops"):
        await client.send(get("/", "Transfer-Encoding: chunked", method="POST"))
        await (await replica.accept()).upto(b"\r\n\r\n")
        if ending == "client broke its body":
            await client.send(b"nonsense\r\n")
        elif ending == "body too large":
            await client.send(b"b\r\n01234567890\r\n")
        await client.message()
    else:
        await client.send(get())
        wire, _ = await replica.request()
        if ending == "whole":
            await wire.send(reply())
            await client.message()
        elif ending == "until eof":
            await wire.send(reply(framing="none"))
            wire.close()
            await client.message()
        elif ending == "client gone early":
            client.close()
        elif ending == "client gone midstream":
            await wire.send(reply(b"12345")[:-2])
            await client.upto(b"123")
            client.close()
        elif ending == "replica gone early":
            wire.close()
        elif ending == "replica gone midstream":
            await wire.send(reply(b"12345")[:-2])
            wire.close()
    await until(lambda: sum(gateway.totals().codes.values()) == counted)
    record = records(gateway)[-1]
    assert (record["status"], record["closed_by"]) == (status, closed_by)


async def test_times_are_counted_in_their_buckets(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await client.nothing(0.12)
    await wire.send(reply(b"0123456789")[:-5])
    await client.upto(b"01234")
    await client.nothing(0.2)
    await wire.send(b"56789")
    await client.exactly(5)
    totals = gateway.totals()
    assert sum(totals.ttfb_buckets) == sum(totals.duration_buckets) == 1
    assert 0.1 < totals.ttfb_sum < totals.duration_sum - 0.15
    assert totals.ttfb_buckets.index(1) == bisect_left(TTFB_BOUNDS, totals.ttfb_sum)
    assert totals.duration_buckets.index(1) == bisect_left(DURATION_BOUNDS, totals.duration_sum)


async def test_the_first_byte_is_of_the_body_not_of_the_head(gateway: Gateway) -> None:
    replica = await gateway.serve()
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"", framing="chunked")[:-5])
    await client.upto(b"\r\n\r\n")
    await client.nothing(0.15)
    await wire.send(b"2\r\nok\r\n0\r\n\r\n")
    await client.upto(b"0\r\n\r\n")
    assert gateway.totals().ttfb_sum > 0.12


async def test_an_answer_without_a_body_has_no_first_byte(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply(b"", status="204 No Content", framing="none")
    client = await gateway.client()
    assert (await client.ask(get())).status == 204
    assert sum(gateway.totals().ttfb_buckets) == 0
    assert records(gateway)[0]["seconds_to_first_byte"] is None


async def test_only_what_changed_is_reported(gateway: Gateway) -> None:
    for name in ("one", "two"):
        (await gateway.serve(name)).answers = reply()
    meters = gateway.edge.meters
    assert meters.take_changed() == {}
    client = await gateway.client()
    await client.ask(get(host="one.example"))
    assert set(meters.take_changed()) == {"main/one"}
    assert meters.take_changed() == {}
    await client.ask(get(host="one.example"))
    await client.ask(get("/x", host="none.example"))
    changed = meters.take_changed()
    assert set(changed) == {"main/one", ""}
    assert changed["main/one"].codes == {200: 2}  # cumulative
    del gateway.services["one"]
    gateway.publish()
    assert "main/one" not in meters.take_changed()


async def test_a_log_that_nobody_reads_stops_no_request(gateway: Gateway) -> None:
    log = gateway.edge.access_log
    reading, writing = os.pipe()
    log.close()
    stuck = AccessLog(Log(access=f"/proc/self/fd/{writing}", format="text"))
    gateway.edge.access_log = stuck
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    for _ in range(50):
        assert (await client.ask(get("/" + "a" * 8000))).status == 200
    os.close(reading)
    os.close(writing)
    stuck.close()
    gateway.edge.access_log = log


async def test_a_file_that_was_moved_away_is_opened_again(gateway: Gateway) -> None:
    replica = await gateway.serve()
    replica.answers = reply()
    client = await gateway.client()
    path = gateway.directory / "access.log"
    await client.ask(get("/1"))
    await until(lambda: path.exists() and path.read_text().count("\n") == 1)
    path.rename(gateway.directory / "access.log.1")
    gateway.edge.access_log.reopen()
    await until(path.exists)
    await client.ask(get("/2"))
    assert [record["path"] for record in records(gateway)] == ["/2"]


async def test_the_date_is_right(gateway: Gateway) -> None:
    await gateway.serve_by(0)
    client = await gateway.client()
    answer = await client.ask(get())
    assert abs(parsedate_to_datetime(answer["Date"]).timestamp() - time.time()) < 3
