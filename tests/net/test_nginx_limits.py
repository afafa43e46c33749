"""Our leaky bucket and the real nginx, given the same arrivals."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from nginx_reference import Arrival, Explanations, arrive, nginx

from gatewayd.core.model import RateLimit
from gatewayd.core.ratelimit import compile_limits, longest_prefix, rate_milli
from gatewayd.core.routing import normal_path

pytestmark = pytest.mark.needs("nginx")

# name: (nginx's rate, the same in requests per second, burst)
ZONES = {
    "burst3": ("5r/s", 5, 3),
    "burst0": ("5r/s", 5, 0),
    "minute": ("90r/m", 1.5, 2),
    "slow": ("1r/m", 1 / 60, 4),
    "big": ("10r/s", 10, 40),
}


def wandering(seed: int) -> list[int]:
    """Bursts and gaps."""
    chance = random.Random(seed)  # noqa: S311
    now, moments = 0, list[int]()
    while now < 2200:
        moments += [now] * chance.choice((1, 1, 2, 5))
        now += chance.choice((70, 110, 270, 450))
    return moments


# (what it shows, zone, moments of arrival in ms)
SCHEDULES = [
    ("burst and one at an instant", "burst3", [0] * 8),
    ("refilling", "burst3", [0] * 6 + [100, 300, 300, 500, 500, 1150] + [1150] * 4),
    ("full again", "burst3", [0] * 4 + [1100] * 6),
    ("one per interval", "burst0", [0, 0, 100, 150, 260, 300, 520, 900, 900]),
    ("hammering", "burst0", list(range(0, 1900, 53))),
    ("a rate per minute", "minute", [0] * 5 + [400, 800, 800, 1100, 1500, 2200]),
    ("a rate that is not a whole thousandth", "slow", [0] * 9 + [1000, 2000]),
    ("a large burst", "big", [0] * 50 + [450] * 10 + [1250] * 15),
    *((f"wandering {seed}", "burst3", wandering(seed)) for seed in range(4)),
    *((f"wandering without burst {seed}", "burst0", wandering(seed)) for seed in range(2)),
]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    http = "\n".join(
        f"    limit_req_zone $http_x_key zone={name}:1m rate={rate};"
        for name, (rate, _, _) in ZONES.items()
    )
    server = "\n".join(
        f"        location /{name} {{"
        f" limit_req zone={name}{f' burst={burst}' if burst else ''} nodelay; empty_gif; }}"
        for name, (_, _, burst) in ZONES.items()
    )
    directory: Path = tmp_path_factory.mktemp("nginx")
    with nginx(directory, http=http, server=server) as port:
        yield port


@pytest.fixture(scope="module")
def measured(port: int) -> list[list[Arrival]]:
    """Every schedule at once, each with a key of its own."""

    async def run() -> list[list[Arrival]]:
        return await asyncio.gather(
            *(
                arrive(port, f"/{zone}", moments, headers=[("X-Key", str(number))])
                for number, (_, zone, moments) in enumerate(SCHEDULES)
            )
        )

    return asyncio.run(run())


@pytest.mark.parametrize("number", range(len(SCHEDULES)), ids=[name for name, _, _ in SCHEDULES])
def test_every_decision_of_nginx_is_ours(number: int, measured: list[list[Arrival]]) -> None:
    _, zone, moments = SCHEDULES[number]
    _, rps, burst = ZONES[zone]
    explanations = Explanations(rate_milli(rps), burst)
    for arrival in measured[number]:
        assert explanations.explain(arrival), (arrival, measured[number])
    assert len(measured[number]) == len(moments)
    # Had the machine stalled for so long that any answer would do, this would have said nothing.
    assert explanations.certain >= len(moments) / 2


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("/a", "/a"),
        ("/abc", "/a"),
        ("/ab/c", "/ab/"),
        ("/ab", "/a"),
        ("/b", "/"),
        ("/ab/%63d?x=/ab/cde", "/ab/cd"),
        ("//ab//cd", "/ab/cd"),
        ("/x/../ab/./cd", "/ab/cd"),
        ("/A", "/"),
    ],
)
async def test_a_path_is_covered_by_the_prefix_that_nginx_would_choose(
    tmp_path: Path, path: str, prefix: str
) -> None:
    prefixes = ["/", "/a", "/ab/", "/ab/cd"]
    server = "\n".join(f"location {p} {{ add_header X-Prefix {p}; empty_gif; }}" for p in prefixes)
    with nginx(tmp_path, server=server) as port:
        (arrival,) = await arrive(port, path, [0])
    assert arrival.headers["x-prefix"] == prefix
    rule = longest_prefix(
        compile_limits("main/llama", (RateLimit(p, 1.0, 0) for p in prefixes)), normal_path(path)
    )
    assert rule is not None
    assert rule.prefix == prefix


async def test_a_request_without_the_key_is_not_limited(port: int) -> None:
    absent = await arrive(port, "/burst0", [0] * 5)
    empty = await arrive(port, "/burst0", [0] * 5, headers=[("X-Key", "")])
    assert {arrival.status for arrival in (*absent, *empty)} == {200}
