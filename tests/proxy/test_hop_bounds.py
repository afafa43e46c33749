"""The bounds of the hop to a replica: connecting, the first byte, idle, in all."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from conversation import Cut, chunked, get, post, reply
from harness import Gateway

from gatewayd.core.model import Timeouts

# --- the hop


async def test_a_full_backlog_is_504_at_the_connect_bound(gateway: Gateway) -> None:
    replica = await gateway.serve(timeouts=Timeouts(connect=0.1))
    replica.stop_listening()
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as filler:
        listening.bind(str(replica.path))
        listening.listen(0)
        filler.connect(str(replica.path))
        client = await gateway.client()
        assert (await client.ask(get())).status == 504
    assert gateway.totals().upstream_errors == {("chat-a", "connect_timeout"): 1}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 O",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
    ids=["silent", "half a head", "interim"],
)
async def test_a_replica_that_does_not_answer_is_504(gateway: Gateway, answer: bytes) -> None:
    replica = await gateway.serve(timeouts=Timeouts(first_byte=0.1, idle=5.0))
    client = await gateway.client()
    await client.send(post(b"{}"))
    wire, _ = await replica.request()
    await wire.send(answer)
    reply_ = await client.message()
    assert reply_.status == 504
    assert b"upstream_timeout" in reply_.body
    assert not reply_.closes
    assert await wire.gone() == b""
    assert len(replica.wires) == 1
    assert gateway.totals().upstream_errors == {("chat-a", "first_byte_timeout"): 1}


async def test_early_headers_do_not_end_the_wait_for_the_first_byte(gateway: Gateway) -> None:
    """Engines send their head at once and prefill for minutes."""
    replica = await gateway.serve(timeouts=Timeouts(first_byte=2.0, idle=0.1))
    client = await gateway.client()
    await client.send(post(b"{}"))
    wire, _ = await replica.request()
    await wire.send(reply(b"", framing="chunked")[:-5])
    await client.upto(b"\r\n\r\n")
    await client.nothing(0.25)  # longer than idle, shorter than first_byte
    await wire.send(chunked(b"token"))
    assert b"token" in await client.upto(b"0\r\n\r\n")


async def test_early_headers_without_a_first_byte_are_cut(gateway: Gateway) -> None:
    replica = await gateway.serve(timeouts=Timeouts(first_byte=0.1, idle=5.0))
    client = await gateway.client()
    await client.send(post(b"{}"))
    wire, _ = await replica.request()
    await wire.send(reply(b"", framing="chunked")[:-5])
    with pytest.raises(Cut):
        await client.message()
    await wire.gone()
    assert gateway.totals().upstream_errors == {("chat-a", "first_byte_timeout"): 1}


async def test_a_replica_that_stops_in_the_middle_is_cut_at_the_idle_bound(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve(timeouts=Timeouts(idle=0.1))
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"0123456789")[:-5])
    with pytest.raises(Cut):
        await client.message()
    await wire.gone()
    assert gateway.totals().upstream_errors == {("chat-a", "idle_timeout"): 1}


async def test_a_replica_that_trickles_is_not_idle(gateway: Gateway) -> None:
    replica = await gateway.serve(timeouts=Timeouts(first_byte=0.15, idle=0.15))
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"", "Content-Length: 8", framing="none"))
    for _ in range(8):
        await asyncio.sleep(0.04)
        await wire.send(b"x")
    assert (await client.message()).body == b"x" * 8


async def test_the_total_bound_holds_whatever_flows(gateway: Gateway) -> None:
    replica = await gateway.serve(timeouts=Timeouts(total=0.2))
    client = await gateway.client()
    await client.send(get())
    wire, _ = await replica.request()
    await wire.send(reply(b"", "Content-Length: 1000", framing="none"))
    started = time.monotonic()
    reading = asyncio.create_task(client.gone())
    while not reading.done() and time.monotonic() - started < 3:
        wire.writer.write(b"x")
        await asyncio.sleep(0.02)
    assert reading.done()
    assert gateway.totals().upstream_errors == {("chat-a", "total_timeout"): 1}


@pytest.mark.parametrize("size", [900_000, 20_000_000])
async def test_a_replica_that_stops_taking_the_body_is_late_as_a_client_would_be(
    gateway: Gateway, size: int
) -> None:
    """The larger one is passed on by the kernel."""
    replica = await gateway.serve(timeouts=Timeouts(first_byte=None))
    gateway.limit(body_idle_timeout=0.2)
    client = await gateway.client()
    client.writer.write(post(b"x" * size))
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n")
    assert (await client.message()).status == 504
    assert gateway.totals().upstream_errors == {("chat-a", "send_timeout"): 1}


@pytest.mark.parametrize("size", [900_000, 20_000_000])
async def test_a_replica_that_takes_the_body_slowly_is_not_late(
    gateway: Gateway, size: int
) -> None:
    """Less at a time than what wakes whoever waits to write."""
    replica = await gateway.serve(timeouts=Timeouts(first_byte=None))
    gateway.limit(body_idle_timeout=1.5)
    client = await gateway.client()
    client.writer.write(post(b"x" * size))
    wire = await replica.accept()
    await wire.upto(b"\r\n\r\n")
    for _ in range(20):
        await wire.exactly(20_000)
        await asyncio.sleep(0.1)
    await wire.exactly(size - 400_000)
    await wire.send(reply(b"at last"))
    assert (await client.message()).body == b"at last"


async def test_a_replica_that_takes_no_byte_of_the_body_meets_the_first_byte_bound(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve(timeouts=Timeouts(first_byte=0.2))
    gateway.limit(body_idle_timeout=5.0)
    client = await gateway.client()
    client.writer.write(post(b"x" * 20_000_000))
    await replica.accept()
    assert (await client.message()).status == 504


async def test_the_clock_of_the_replica_stands_while_the_client_does_not_read(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve(timeouts=Timeouts(first_byte=0.1, idle=0.1))
    client = await gateway.client(receive_buffer=4096)
    await client.send(get())
    wire, _ = await replica.request()
    size = 12_000_000
    wire.writer.write(reply(b"", f"Content-Length: {size}", framing="none") + b"x" * size)
    await client.upto(b"\r\n\r\n")
    await asyncio.sleep(0.3)  # nobody reads, and nobody is to blame but the client
    assert len(await client.exactly(size)) == size
