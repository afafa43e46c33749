"""Clients and replicas that do anything at any moment: nothing hangs, nothing is left, and what
arrives whole is what was said.

Each body carries the number of its request, so that an answer that reaches the wrong client, or a
part that passes for the whole, is seen. What is asserted after every test (harness.settle) is half
of this one: no exchange, task, count or connection remains, and nothing was logged as an error.
"""

from __future__ import annotations

import asyncio
import random

import pytest
from conversation import Cut, Message, Replica, Wire, chunked, get, post, reply
from harness import Gateway

from gatewayd.core.model import Timeouts

Chance = random.Random  # repeatable, and it guards nothing
CLIENTS = 24
TURNS = 12


def answer_to(request: Message, chance: Chance) -> tuple[bytes, bool]:
    """An answer that names its request, and whether its end is the end of the connection."""
    word = f"{request['X-Number']}:{len(request.body)};".encode()
    body = word * chance.choice([1, 1, 50, 20_000])
    framing = chance.choice([None, None, "chunked", "chunked", "none"])
    fields = ["X-Word: " + word.decode(), f"X-Times: {len(body) // len(word)}"]
    if chance.random() < 0.1:
        fields.append("Connection: close")
    data = reply(body, *fields, framing=framing if request.method != "HEAD" else None)
    if request.method == "HEAD":
        data = data[: data.index(b"\r\n\r\n") + 4]
    if chance.random() < 0.2:
        data = b"HTTP/1.1 103 Early Hints\r\n\r\n" + data
    return data, framing == "none" or "Connection: close" in fields


async def replica_life(wire: Wire, chance: Chance, posts: list[str]) -> None:
    """One connection of a replica, until it ends it one way or another."""
    ends_body = False
    try:
        while True:
            request = await wire.message(wait_s=None)
            if request.method == "POST":
                posts.append(request["X-Number"])
            data, last = answer_to(request, chance)
            # Where the end of the connection is the end of the body, a part is a whole.
            ends_body = b"\r\nContent-" not in data and b"chunked" not in data
            match 12 if ends_body else chance.randrange(12):
                case 0:
                    break  # without a word
                case 1:
                    await wire.send(data[: chance.randrange(len(data))])
                    break
                case 2:
                    await wire.send(data + b"surplus")
                    break
                case 3:
                    await asyncio.sleep(0.15)  # beyond the first-byte bound
                case 4 | 5:
                    for at in range(0, min(len(data), 400), 40):
                        await wire.send(data[at : at + 40])
                        await asyncio.sleep(0)
                    await wire.send(data[400:])
                case _:
                    await wire.send(data)
            if last or request.closes:
                break
    except (Cut, ConnectionError, TimeoutError):
        pass
    wire.close() if ends_body or chance.random() < 0.7 else wire.reset()


def request_of(number: int, chance: Chance) -> tuple[bytes, str, int]:
    """(bytes, method, size of the body)."""
    field = f"X-Number: {number}"
    body = b"b" * chance.choice([0, 1, 1000, 70_000, 400_000])
    match chance.randrange(5):
        case 0:
            return get("/", field), "GET", 0
        case 1:
            return get("/", field, method="HEAD"), "HEAD", 0
        case 2:
            head = get("/", field, "Transfer-Encoding: chunked", method="PUT")
            pieces = [body[i : i + 9_999] for i in range(0, len(body), 9_999)]
            return head + chunked(*pieces), "PUT", len(body)
        case _:
            return post(body, "/", field), "POST", len(body)


def check(answer: Message, number: int, size: int, method: str) -> None:
    if answer.status == 200:
        word = f"{number}:{size};"
        assert answer["X-Word"] == word
        if method != "HEAD":
            assert answer.body == word.encode() * int(answer["X-Times"])
    else:
        assert answer.status in (502, 504), answer.start


async def client_life(gateway: Gateway, first: int, chance: Chance) -> int:
    """One client's requests; how many were answered whole."""
    answered = 0
    client: Wire | None = None
    for turn in range(TURNS):
        number = first + turn
        client = client or await gateway.client()
        data, method, size = request_of(number, chance)
        leaves = chance.random() < 0.15
        try:
            if leaves:
                await client.send(data[: chance.randrange(1, len(data))])
                await asyncio.sleep(chance.random() * 0.02)
                client.reset() if chance.random() < 0.5 else client.close()
                client = None
                continue
            asked = [(number, method, size)]
            if chance.random() < 0.3:  # another right behind it
                more, method, size = request_of(number + 500, chance)
                asked.append((number + 500, method, size))
                data += more
            cut = chance.randrange(len(data))
            client.writer.write(data[:cut])
            await asyncio.sleep(0)
            client.writer.write(data[cut:])
            for number, method, size in asked:
                answer = await client.message(to=method)
                check(answer, number, size, method)
                answered += answer.status == 200
                if answer.closes:
                    await client.gone()
                    client = None
                    break
        except (Cut, ConnectionError):
            client = None
    if client is not None:
        client.close()
    return answered


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_hangs_nothing_is_left_and_nothing_is_mixed_up(
    gateway: Gateway, seed: int
) -> None:
    chance = Chance(seed)
    gateway.reuse_s = chance.choice([0.0, 30.0])
    replicas = await gateway.serve_by(3, timeouts=Timeouts(first_byte=0.1, idle=0.3))
    lives: set[asyncio.Task[None]] = set()
    posts: list[str] = []

    def live(wire: Wire) -> None:
        lives.add(asyncio.create_task(replica_life(wire, Chance(chance.random()), posts)))

    async def accept(replica: Replica) -> None:
        while True:
            live(await replica._waiting.get())

    accepting = [asyncio.create_task(accept(replica)) for replica in replicas]
    everyone = gateway.services["chat"].replicas
    clients = [
        asyncio.create_task(client_life(gateway, n * 1000, Chance(chance.random())))
        for n in range(CLIENTS)
    ]
    while not all(task.done() for task in clients):
        gateway.change(replicas=tuple(chance.sample(everyone, chance.choice([2, 3]))))
        await asyncio.sleep(0.01)
    answered = sum([await task for task in clients])
    assert answered > CLIENTS * TURNS // 4
    assert len(posts) == len(set(posts))  # whatever was repeated, no POST was
    for task in [*accepting, *lives]:
        task.cancel()
    await asyncio.gather(*accepting, *lives, return_exceptions=True)
