"""Requests on shared connections: bodies whole under any window, every end told once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from multiplexed import HEAD, Asker, Asking, Peer
from waiting import until

from gatewayd.core import http2
from gatewayd.net import mux as mux_module
from gatewayd.net.mux import Mux
from gatewayd.net.mux_stream import Stream


@dataclass
class Pair:
    """A connection and its scripted peer."""

    mux: Mux
    peer: Peer
    heard: list[Asking]

    async def ask(self, body: bytes | None = b"{}") -> tuple[Asker, Stream, Asking]:
        asker = Asker()
        count = len(self.heard)
        stream = self.mux.post(asker, HEAD, body)
        await until(lambda: len(self.heard) > count, "it arrives")
        return asker, stream, self.heard[-1]


@asynccontextmanager
async def pair(path: Path, **options: object) -> AsyncIterator[Pair]:
    loop = asyncio.get_running_loop()
    heard: list[Asking] = []
    made: asyncio.Queue[Peer] = asyncio.Queue()

    def peer() -> Peer:
        new = Peer(heard.append, **options)  # type: ignore[arg-type]
        made.put_nowait(new)
        return new

    server = await loop.create_unix_server(peer, str(path))
    _, mux = await loop.create_unix_connection(lambda: Mux(loop), str(path))
    try:
        async with asyncio.timeout(30):
            yield Pair(mux, await made.get(), heard)
    finally:
        mux.close()
        server.close()
        await asyncio.sleep(0)


async def test_a_request_and_its_answer(path: Path) -> None:
    async with pair(path) as both:
        asker, stream, asking = await both.ask(b'{"a": 1}')
        assert asking.fields == [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/v1"),
            (":authority", "router"),
            ("x-ask", "s0.1.1"),
        ]
        assert await asking.whole() == b'{"a": 1}'
        assert stream.sent
        assert not both.mux.idle
        asking.begin()
        asking.peer.send(http2.frame(http2.DATA, 0, asking.number, b"part"))
        await asyncio.sleep(0.01)
        assert asker.ends == []  # only its end is told
        asking.end(b"rest")
        assert await asker.end() == "answered"
        assert both.mux.idle
        assert both.mux.free


async def test_what_we_say_of_ourselves(path: Path) -> None:
    async with pair(path) as both:
        await both.ask()
        told = dict(both.peer.told)
        assert told == {
            http2.HEADER_TABLE_SIZE: 0,
            http2.ENABLE_PUSH: 0,
            http2.INITIAL_WINDOW_SIZE: http2.LARGEST,
        }
        await until(lambda: (http2.SETTINGS, http2.ACK, 0, b"") in both.peer.frames)
        both.peer.send(http2.frame(http2.PING, 0, 0, b"12345678"))
        await until(lambda: (http2.PING, http2.ACK, 0, b"12345678") in both.peer.frames)


async def test_no_body_and_an_answer_without_one(path: Path) -> None:
    async with pair(path) as both:
        asker, stream, asking = await both.ask(b"")
        assert asking.ended
        assert stream.sent
        asking.answer_without_body(204)
        assert await asker.end() == "answered"


async def test_an_interim_answer_is_none(path: Path) -> None:
    async with pair(path) as both:
        asker, _, asking = await both.ask()
        asking.begin(103)
        await asyncio.sleep(0.01)
        assert asker.ends == []
        asking.answer(200)
        assert await asker.end() == "answered"


async def test_many_at_once_answered_in_any_order(path: Path) -> None:
    async with pair(path) as both:
        all_ = [await both.ask(b"%d" % n) for n in range(150)]
        assert len({stream.number for _, stream, _ in all_}) == 150
        for _, _, asking in reversed(all_):
            asking.answer()
        for asker, _, _ in all_:
            assert await asker.end() == "answered"
        assert [int(asking.body) for _, _, asking in all_] == list(range(150))


class Written(asyncio.Transport):
    """A transport that only notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))


async def test_what_is_asked_in_one_turn_is_one_write() -> None:
    mux = Mux(asyncio.get_running_loop())
    transport = Written()
    mux.connection_made(transport)
    streams = [mux.post(Asker(), HEAD, b"{}") for _ in range(10)]
    window = mux.window
    streams.pop(3).cancel()  # of which the peer never hears
    assert mux.window == window + 2
    assert transport.writes == []
    await asyncio.sleep(0)
    (said,) = transport.writes
    frames = [kind for kind, *_ in http2.read_frames(said[24:])]  # without the preface's words
    assert frames[2:] == [http2.HEADERS, http2.DATA] * 9
    streams[0].cancel()
    await asyncio.sleep(0)
    assert [kind for kind, *_ in http2.read_frames(transport.writes.pop())] == [http2.RST_STREAM]
    mux.post(Asker(), HEAD, bytes(60_000))
    mux.post(Asker(), HEAD, b"{}")
    await asyncio.sleep(0)
    assert len(transport.writes) == 2


async def test_what_is_taken_back_in_its_turn_leaves_its_window_to_others() -> None:
    mux = Mux(asyncio.get_running_loop())
    transport = Written()
    mux.connection_made(transport)
    large = mux.post(Asker(), HEAD, bytes(100_000))  # all of the window and more
    other = mux.post(Asker(), HEAD, b"{}")
    assert not other.sent
    large.cancel()
    assert other.sent
    await asyncio.sleep(0)
    (said,) = transport.writes
    assert [kind for kind, *_ in http2.read_frames(said[24:])][2:] == [http2.HEADERS, http2.DATA]


# --- bodies and windows


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ((http2.INITIAL_WINDOW_SIZE, 1),),
        ((http2.INITIAL_WINDOW_SIZE, 1000), (http2.MAX_FRAME_SIZE, 16384)),
        ((http2.INITIAL_WINDOW_SIZE, 1 << 20), (http2.MAX_FRAME_SIZE, 1 << 20)),
    ],
)
@pytest.mark.parametrize("pieces", [0, 1, 7])
async def test_a_body_arrives_whole_under_any_window(
    path: Path, settings: tuple[tuple[int, int], ...], pieces: int
) -> None:
    size = 3000 if dict(settings).get(http2.INITIAL_WINDOW_SIZE) == 1 else 500_000
    body = os.urandom(size)
    async with pair(path, settings=settings) as both:
        asker, stream, asking = await both.ask(None if pieces else body)
        if pieces:
            step = -(-size // pieces)
            for at in range(0, size, step):
                stream.write(body[at : at + step])
                await stream.drained()
            stream.write(b"", last=True)
        assert await asking.whole() == body
        assert stream.sent
        asking.answer()
        assert await asker.end() == "answered"


async def test_bodies_share_the_connections_window(path: Path) -> None:
    bodies = [os.urandom(50_000 + n) for n in range(6)]
    async with pair(path) as both:
        all_ = [await both.ask(body) for body in bodies]
        for (_, _, asking), body in zip(all_, bodies, strict=True):
            assert await asking.whole() == body


async def test_a_peer_that_does_not_read_holds_the_writer_back(path: Path) -> None:
    async with pair(path, takes=False) as both:
        asker, stream, asking = await both.ask(None)
        written = 0
        while not stream.paused:
            stream.write(bytes(10_000))
            written += 10_000
        assert written < 200_000
        waiting = asyncio.ensure_future(stream.drained())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        both.peer.takes = True
        both.peer.send(
            http2.window_update(0, 1 << 20) + http2.window_update(asking.number, 1 << 20)
        )
        async with asyncio.timeout(30):
            await waiting
        stream.write(b"", last=True)
        assert len(await asking.whole()) == written
        assert asker.ends == []


@pytest.mark.parametrize("end", ["cancel", "reset", "die", "answer"])
async def test_whoever_waits_to_write_is_woken_by_the_end(path: Path, end: str) -> None:
    async with pair(path, takes=False) as both:
        asker, stream, asking = await both.ask(None)
        stream.write(bytes(300_000))
        waiting = asyncio.ensure_future(stream.drained())
        await asyncio.sleep(0)
        assert not waiting.done()
        match end:
            case "cancel":
                stream.cancel()
            case "reset":
                asking.reset()
            case "die":
                both.peer.die()
            case "answer":
                asking.answer(413)
        async with asyncio.timeout(30):
            await waiting
        stream.write(b"into nothing", last=True)
        expected = {"cancel": [], "answer": ["answered"]}.get(end, ["broken"])
        await until(lambda: asker.ends == expected)
        assert both.mux.idle


# --- endings


async def test_one_that_is_cancelled_ends_for_the_peer_alone(path: Path) -> None:
    async with pair(path) as both:
        asker, stream, asking = await both.ask()
        other, _, kept = await both.ask()
        stream.cancel()
        stream.cancel()
        await asking.given_up()
        asking.answer()  # it crossed the cancellation
        kept.answer()
        assert await other.end() == "answered"
        assert asker.ends == []
        assert repr(stream) == f"<Stream {stream.number} over>"


async def test_a_peer_that_needs_no_more_of_a_body(path: Path) -> None:
    async with pair(path) as both:
        asker, stream, asking = await both.ask(None)
        stream.write(b"a part")
        await asking.has(6)
        asking.answer(413)
        asking.reset(0)
        assert await asker.end() == "answered"
        await asking.given_up()
        assert both.mux.idle


async def test_a_peer_that_resets_one(path: Path) -> None:
    async with pair(path) as both:
        asker, _, asking = await both.ask()
        other, _, kept = await both.ask()
        asking.reset()
        assert await asker.end() == "broken"
        kept.answer()
        assert await other.end() == "answered"


async def test_a_peer_that_dies(path: Path) -> None:
    async with pair(path) as both:
        all_ = [await both.ask() for _ in range(5)]
        both.peer.die()
        for asker, _, _ in all_:
            assert await asker.end() == "broken"
        assert not both.mux.free
        assert both.mux.idle


async def test_a_peer_that_goes_away(path: Path) -> None:
    """What it has taken ends, what it has not is broken, and nothing new begins."""
    async with pair(path) as both:
        first = await both.ask()
        second = await both.ask()
        last = first[1].number.to_bytes(4, "big")
        both.peer.send(http2.frame(http2.GOAWAY, 0, 0, last + bytes(4)))
        assert await second[0].end() == "broken"
        assert not both.mux.free
        assert not both.peer.gone
        first[2].answer()
        assert await first[0].end() == "answered"
        await until(lambda: both.peer.gone, "it is closed with its last one")


async def test_retired_it_closes_with_its_last_one(path: Path) -> None:
    async with pair(path) as both:
        asker, _, asking = await both.ask()
        both.mux.retire()
        assert not both.mux.free
        await asyncio.sleep(0.01)
        assert not both.peer.gone
        asking.answer()
        assert await asker.end() == "answered"
        await until(lambda: both.peer.gone)


async def test_numbers_do_not_run_out(path: Path) -> None:
    async with pair(path) as both:
        both.mux._next = http2.LARGEST - 1000
        await both.ask()
        assert not both.mux.free


@pytest.mark.parametrize(
    "words",
    [
        (1 << 20).to_bytes(3, "big") + b"\0\0\0\0\0\1" + bytes(1 << 20),  # larger than we take
        http2.frame(http2.SETTINGS, 0, 0, b"12345"),
        http2.frame(http2.WINDOW_UPDATE, 0, 0, b""),
        http2.frame(http2.WINDOW_UPDATE, 0, 77, b"\xff\xff\xff\xff"),
        http2.frame(http2.GOAWAY, 0, 0, b""),
        http2.frame(http2.RST_STREAM, 0, 0, b""),
        http2.frame(http2.DATA, http2.END_STREAM, 9, b"of nobody"),
        http2.frame(http2.HEADERS, http2.END_STREAM, 9, b"\x88"),
        http2.frame(99, 255, 12, b"unknown"),
        b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3000,
    ],
)
async def test_nonsense_breaks_at_most_the_connection(path: Path, words: bytes) -> None:
    async with pair(path) as both:
        asker, _, asking = await both.ask()
        both.peer.send(words)
        await asyncio.sleep(0.02)
        asking.answer()
        assert await asker.end() in ("answered", "broken")


async def test_frames_that_come_byte_by_byte(path: Path) -> None:
    async with pair(path) as both:
        asker, _, asking = await both.ask()
        said: list[bytes] = []
        both.peer.send = said.append  # type: ignore[method-assign]
        asking.answer(200, b"some words")
        for byte in b"".join(said):
            both.mux.data_received(bytes((byte,)))
        assert await asker.end() == "answered"


async def test_a_connection_that_has_received_much_takes_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mux_module, "_TOP_UP", 100_000)
    async with pair(path) as both:
        asker, _, asking = await both.ask()
        asking.answer(200, bytes(150_000))
        assert await asker.end() == "answered"

        def opened() -> list[int]:
            return [
                int.from_bytes(payload, "big")
                for kind, _, number, payload in both.peer.frames
                if kind == http2.WINDOW_UPDATE and number == 0
            ][1:]  # the first is of the preface

        await until(lambda: opened() and sum(opened()) > 100_000)
