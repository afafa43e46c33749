"""What is repeated, what is never, and which replicas are left out for a while."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import termios
from array import array
from collections.abc import Coroutine

import pytest
from conversation import Cut, Replica, Wire, chunked, get, post, reply
from harness import Gateway
from waiting import until

BODY = b'{"prompt": "x"}'


async def warm(gateway: Gateway, replica: Replica) -> Wire:
    """An idle pooled connection to the replica."""
    client = await gateway.client()
    await client.send(get("/warm"))
    wire, _ = await replica.request()
    await wire.send(reply(b"warm"))
    assert (await client.message()).body == b"warm"
    client.close()
    assert gateway.idle_connections == 1
    return wire


@pytest.mark.parametrize("request_", [get(), post(BODY)], ids=["GET", "POST"])
async def test_a_refused_connection_goes_to_the_next_replica(
    gateway: Gateway, request_: bytes
) -> None:
    first, second = await gateway.serve_by(2, balance="round_robin")
    second.answers = reply(b"second")
    first.stop_listening()
    client = await gateway.client()
    for _ in range(4):
        assert (await client.ask(request_)).body == b"second"
    totals = gateway.totals()
    assert totals.codes == {200: 4}
    assert totals.retries == 1  # then it was known
    assert totals.upstream_errors == {("chat-a", "connect"): 1}
    assert gateway.plane.unreachable


@pytest.mark.parametrize("kind", ["missing", "plain file", "directory", "refusing"])
async def test_a_path_that_is_no_listening_socket_is_502_at_once(
    gateway: Gateway, kind: str
) -> None:
    replica = await gateway.serve()
    replica.stop_listening()
    if kind == "plain file":
        replica.path.write_text("not a socket")
    elif kind == "directory":
        replica.path.mkdir()
    elif kind == "refusing":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(replica.path))  # and never listens
    client = await gateway.client()
    started = gateway.loop.time()
    assert (await client.ask(get())).status == 502
    assert gateway.loop.time() - started < 2  # not the bound of connecting


async def test_a_replica_is_used_again_within_a_second_of_its_return(gateway: Gateway) -> None:
    first, second = await gateway.serve_by(2, balance="round_robin")
    first.answers, second.answers = reply(b"first"), reply(b"second")
    first.stop_listening()
    client = await gateway.client()
    assert (await client.ask(get())).body == b"second"
    assert (await client.ask(get())).body == b"second"
    await first.start()
    back = gateway.loop.time()
    while (await client.ask(get())).body != b"first":
        await asyncio.sleep(0.01)
        assert gateway.loop.time() - back < 1.0


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_what_may_be_repeated_is_when_its_pooled_connection_was_stale(
    gateway: Gateway, method: str
) -> None:
    replica = await gateway.serve()
    stale = await warm(gateway, replica)
    client = await gateway.client()
    await client.send(get("/again", method=method))
    assert (await stale.message()).target == "/again"
    stale.close()
    wire, request = await replica.request()
    assert request.start == f"{method} /again HTTP/1.1"
    await wire.send(reply(b"") if method == "HEAD" else reply(b"ok"))
    assert (await client.message(to=method)).status == 200
    assert gateway.totals().retries == 1


async def test_a_stale_connection_does_not_speak_against_its_replica(gateway: Gateway) -> None:
    replicas = await gateway.serve_by(2)
    clients = [await gateway.client() for _ in replicas]
    for client in clients:
        await client.send(get("/warm"))
    stale = []
    for replica in replicas:
        wire, _ = await replica.request()
        await wire.send(reply())
        stale.append(wire)
    for client in clients:
        assert (await client.message()).status == 200
    assert gateway.idle_connections == 2
    await clients[0].send(get("/again"))
    await until(lambda: gateway.idle_connections == 1)
    for wire in stale:
        wire.close()
    wire = await next_connection(gateway)
    assert (await wire.message()).target == "/again"
    await wire.send(reply())
    assert (await clients[0].message()).status == 200
    assert not gateway.edge._served["chat.example"].live.ejections


async def next_connection(gateway: Gateway) -> Wire:
    waiting = [asyncio.ensure_future(r.accept()) for r in gateway.replicas.values()]
    done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return done.pop().result()


async def test_an_answer_that_began_is_never_repeated(gateway: Gateway) -> None:
    replica = await gateway.serve()
    stale = await warm(gateway, replica)
    client = await gateway.client()
    await client.send(get("/again"))
    await stale.message()
    await stale.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
    stale.close()
    await client.gone()
    assert len(replica.wires) == 1


@pytest.mark.parametrize("begun", [b"HTTP/1.1 2", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_stale_connection_that_had_begun_to_answer_is_not_repeated(
    gateway: Gateway, begun: bytes
) -> None:
    replica = await gateway.serve()
    stale = await warm(gateway, replica)
    client = await gateway.client()
    await client.send(get("/again"))
    await stale.message()
    await stale.send(begun)
    stale.close()
    assert (await client.message()).status == 502
    assert len(replica.wires) == 1


async def test_a_fresh_connection_that_closes_is_not_repeated(gateway: Gateway) -> None:
    first, second = await gateway.serve_by(2)
    client = await gateway.client()
    await client.send(get())
    wire = await next_connection(gateway)
    await wire.message()
    wire.close()
    assert (await client.message()).status == 502
    assert len(first.wires) + len(second.wires) == 1


async def test_a_post_is_sent_on_a_pooled_connection(gateway: Gateway) -> None:
    replica = await gateway.serve()
    kept = await warm(gateway, replica)
    client = await gateway.client()
    for _ in range(3):
        await client.send(post(BODY))
        request = await kept.message()
        assert request.body == BODY
        assert not request.closes
        await kept.send(reply())
        assert (await client.message()).status == 200
    assert len(replica.wires) == 1


async def test_a_post_that_is_still_arriving_takes_no_pooled_connection(gateway: Gateway) -> None:
    """It could not be sent once more."""
    replica = await gateway.serve()
    stale = await warm(gateway, replica)
    client = await gateway.client()
    whole = post(BODY)
    await client.send(whole[:-5])
    wire = await replica.accept()
    await client.send(whole[-5:])
    assert (await wire.message()).body == BODY
    await wire.send(reply())
    assert (await client.message()).status == 200
    await stale.nothing()


def unread(sock: socket.socket) -> int:
    """Bytes that the kernel holds for this end."""
    waiting = array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, waiting)
    return waiting[0]


async def read_and_close(sock: socket.socket, size: int) -> None:
    """As a server that closes a connection, idle to its mind, under a request; -1: it has read
    all but a byte."""
    await until(lambda: unread(sock), "the request is there")
    size = size if size >= 0 else unread(sock) - 1
    assert len(sock.recv(size)) == size


TAKEN = pytest.mark.parametrize("size", [0, 10, -1], ids=["nothing", "a part", "all but a byte"])


@TAKEN
async def test_a_post_that_a_pooled_connection_did_not_read_to_its_end_is_sent_once_more(
    gateway: Gateway, size: int
) -> None:
    replica = await gateway.serve()
    stale = await warm(gateway, replica)
    stale.writer.transport.pause_reading()
    client = await gateway.client()
    await client.send(post(BODY))
    with socket.socket(fileno=os.dup(stale.writer.get_extra_info("socket").fileno())) as sock:
        await read_and_close(sock, size)
    stale.close()
    wire, request = await replica.request()
    assert request.body == BODY
    await wire.send(reply(b"once"))
    assert (await client.message()).body == b"once"
    assert gateway.totals().retries == 1


@TAKEN
async def test_a_post_that_a_fresh_connection_did_not_read_to_its_end_is_sent_once_more(
    gateway: Gateway, size: int
) -> None:
    replica = await gateway.serve()
    replica.stop_listening()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(replica.path))
        listening.listen()
        listening.setblocking(False)
        client = await gateway.client()
        await client.send(post(BODY))
        sock, _ = await gateway.loop.sock_accept(listening)
    replica.path.unlink()
    await replica.start()
    with sock:
        await read_and_close(sock, size)
    wire, request = await replica.request()
    assert request.body == BODY
    await wire.send(reply(b"once"))
    assert (await client.message()).body == b"once"
    assert gateway.totals().retries == 1


async def test_a_post_that_a_pooled_connection_had_read_is_not_sent_again(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve()
    stale = await warm(gateway, replica)
    client = await gateway.client()
    await client.send(post(BODY))
    await stale.message()
    stale.close()
    assert (await client.message()).status == 502
    assert len(replica.wires) == 1
    assert gateway.totals().retries == 0


async def test_a_post_trusts_the_pool_of_a_peer_that_is_known_to_keep_it(gateway: Gateway) -> None:
    gateway.reuse_s = 30.0
    replica = await gateway.serve()
    kept = await warm(gateway, replica)
    client = await gateway.client()
    for _ in range(3):
        await client.send(post(BODY))
        request = await kept.message()
        assert not request.closes
        await kept.send(reply())
        assert (await client.message()).status == 200
    assert len(replica.wires) == 1


@pytest.mark.parametrize("reuse_s", [0.0, 30.0])
@pytest.mark.parametrize("count", [1, 3])
async def test_a_post_that_was_sent_is_never_sent_again(
    gateway: Gateway, reuse_s: float, count: int
) -> None:
    gateway.reuse_s = reuse_s
    replicas = await gateway.serve_by(count)
    client = await gateway.client()
    await client.send(post(BODY))
    wire = await next_connection(gateway)
    await wire.message()
    wire.close()
    assert (await client.message()).status == 502
    assert sum(len(r.wires) for r in replicas) == 1
    assert gateway.totals().retries == 0


async def test_no_post_fails_or_arrives_twice_while_idle_connections_close_under_it(
    gateway: Gateway,
) -> None:
    replica = await gateway.serve()
    seen: list[bytes] = []
    closing: list[Wire] = []

    async def serve_one(wire: Wire) -> None:
        while True:
            request = await wire.message()
            seen.append(request.body)
            await wire.send(reply(request.body))
            if request.method == "GET":
                closing.append(wire)

    async def accept() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(quietly(serve_one(await replica.accept())))

    async def quietly(work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except (Cut, ConnectionError, TimeoutError):
            pass

    accepting = asyncio.create_task(accept())
    clients = [await gateway.client() for _ in range(4)]
    for turn in range(40):
        client = clients[turn % 4]
        assert (await client.ask(get())).status == 200
        while closing:  # idle and pooled, closed at the very moment of the next request
            closing.pop().close()
        body = b"%d" % turn
        assert (await client.ask(post(body))).body == body
    accepting.cancel()
    await asyncio.gather(accepting, return_exceptions=True)
    posts = [body for body in seen if body]
    assert posts == [b"%d" % turn for turn in range(40)]


async def test_idle_connections_do_not_grow_old(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewayd.proxy.plane.POOL_IDLE_S", 0.1)
    monkeypatch.setattr("gatewayd.proxy.hop.POOL_IDLE_S", 0.1)
    replica = await gateway.serve()
    wire = await warm(gateway, replica)
    assert await wire.rest() == b""
    assert gateway.idle_connections == 0


async def test_a_body_goes_to_the_next_replica_when_the_first_refuses(gateway: Gateway) -> None:
    first, second = await gateway.serve_by(2, balance="round_robin")
    first.stop_listening()
    client = await gateway.client()
    await client.send(get("/", "Transfer-Encoding: chunked", method="POST"))
    wire = await second.accept()
    await client.send(chunked(b"still", b" arriving"))
    assert (await wire.message()).body == b"still arriving"
    await wire.send(reply())
    assert (await client.message()).status == 200


async def test_a_busy_backlog_is_waited_for(gateway: Gateway) -> None:
    """A Unix socket whose queue is full says so instead of making us wait; we wait."""
    replica = await gateway.serve()
    replica.stop_listening()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(replica.path))
    listening.listen(0)
    with socket.socket(socket.AF_UNIX) as filler:
        filler.connect(str(replica.path))
        client = await gateway.client()
        await client.send(get())
        await client.nothing(0.05)
    replica.answers = reply(b"at last")
    await replica.start(listening)
    assert (await client.message()).body == b"at last"
