"""Messages that leave together, in the order in which they were put."""

from __future__ import annotations

import asyncio
from typing import cast

from gatewayd.net.outbox import Outbox


class Transport:
    """Writes down what is done to it, in a list that several share."""

    def __init__(self, name: str, done: list[str]) -> None:
        self.name = name
        self.done = done

    def write(self, data: bytes) -> None:
        if data == b"gone":
            raise RuntimeError("the handler is closed")
        self.done.append(f"{self.name} {data.decode()}")

    def close(self) -> None:
        self.done.append(f"{self.name} closed")


def put(outbox: Outbox, transport: Transport, data: bytes) -> None:
    outbox.put(transport.write, data)


def close(outbox: Outbox, transport: Transport) -> None:
    outbox.close(cast(asyncio.Transport, transport))


async def test_last_answers_leave_with_the_others_of_their_turn() -> None:
    outbox = Outbox(asyncio.get_running_loop())
    done: list[str] = []
    a, b = Transport("a", done), Transport("b", done)
    put(outbox, a, b"1")
    close(outbox, a)
    put(outbox, b, b"2")
    close(outbox, b)
    assert done == []
    await asyncio.sleep(0)
    assert done == ["a 1", "a closed", "b 2", "b closed"]


async def test_who_has_nothing_to_wait_for_is_closed_at_once() -> None:
    done: list[str] = []
    close(Outbox(asyncio.get_running_loop()), Transport("a", done))
    assert done == ["a closed"]


async def test_who_is_gone_holds_up_nobody() -> None:
    outbox = Outbox(asyncio.get_running_loop())
    done: list[str] = []
    a, b = Transport("a", done), Transport("b", done)
    put(outbox, a, b"gone")
    put(outbox, b, b"2")
    outbox.flush()
    assert done == ["b 2"]
    await asyncio.sleep(0)
    assert done == ["b 2"]
