"""Rules between tables: whose name, whose domain, what is not there yet; and that nothing is
concluded from what was refused."""

from __future__ import annotations

import pytest
from gateway_text import Load, Problems

from gatewayd.core.model import RouterSpec


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            """
            domain: d
            services: [name: a, name: b, name: a]
            """,
            [
                "2: services[2].name: `a` is also the name of services[0]",
                "2: services[2]: the domain `a.d` is also that of services[0]",
            ],
        ),
        (
            """
            domain: example.com
            services:
              - name: a
              - name: b
                domain: [b.example.com, A.example.com]
            """,
            ["5: services[1].domain: the domain `a.example.com` is also that of services[0]"],
        ),
        (
            """
            services:
              - name: a
                domain: [x.y, X.Y]
            """,
            ["3: services[0].domain: the domain `x.y` is also that of services[0]"],
        ),
        (
            """
            services:
              - name: a
              - name: b
                domain: b.example.com
            """,
            [
                "2: services[0]: nobody can reach `a`: it has no domain; "
                "set `domain` here or at the top"
            ],
        ),
        (
            """
            domain: d
            auth: {type: none}
            services:
              - name: a
                auth: true
            """,
            ["5: services[0].auth: nobody is configured to ask; add an `auth` table at the top"],
        ),
        (
            """
            domain: d
            router: r
            services:
              - name: a
                balance: random
            """,
            [
                "5: services[0].balance: the router `r` chooses the replica of this service; "
                "remove `balance`, or set `router: null` here"
            ],
        ),
        (
            """
            domain: d
            router: {type: r, pd_disaggregation: true}
            services:
              - name: a
                replicas: [http://10.0.0.1:1, unix:/b]
              - {name: b, router: r, replicas: [unix:/c]}
            """,
            [
                "5: services[0].replicas[1]: with `pd_disaggregation` the other replicas have to "
                "reach it; give its `url`, with a host that they know"
            ],
        ),
    ],
)
def test_rules_between_services(problems: Problems, text: str, lines: list[str]) -> None:
    assert problems(text) == lines


def test_what_is_off_by_default_may_be_said(load: Load) -> None:
    load("listen: {https: []}\ncertificate: null\nrouter: {type: r, pd_disaggregation: false}\n")


# --- routers are asked about -------------------------------------------------------------------


def test_a_router_is_asked_about_once_where_it_stands(problems: Problems) -> None:
    asked = []

    def check(spec: RouterSpec) -> list[str]:
        asked.append(spec.type)
        return [f"no router `{spec.type}` is installed", "install it"]

    text = """
        domain: d
        router: one
        services:
          - name: a
          - {name: b, router: two}
          - {name: c, router: null}
    """
    assert problems(text, check_router=check) == [
        "2: router: no router `one` is installed",
        "2: router: install it",
        "5: services[1].router: no router `two` is installed",
        "5: services[1].router: install it",
    ]
    assert asked == ["one", "two"]


def test_a_router_that_is_fine(load: Load) -> None:
    assert load("router: r\n", check_router=lambda spec: []).router == RouterSpec("r")


# --- nothing follows from what was refused -----------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        # no "nobody can reach" when the domain is only misspelt
        "domain: 'a b'\nservices: [name: a]",
        "domain: ${DOMAIN}\nservices: [name: a]",
        "services: [{name: a, domain: ['a b']}]",
        # no "nobody is configured" when the auth table is only wrong
        "auth: {type: x}\nservices: [{name: a, domain: a.b, auth: true}]",
        # no "needs the key `header`" when it is there but wrong
        "services: [{name: a, domain: a.b, rate_limits: [{rps: 1, key: {type: header, "
        "header: 'a b'}}]}]",
        # no "exactly one of" when the one is wrong
        "services: [{name: a, domain: a.b, replicas: [{socket: x}]}]",
        # no "at least one" when the one is wrong
        "auth: {type: tokens, tokens: [{name: a, token: 1}]}",
        "listen: {http: [x]}",
        # no "is required" when it is there but wrong
        "services: [{name: [], domain: a.b}]",
        # no question about a router that is not even spelt
        "router: {type: R!, policy: p}",
        # no clash with an address that is wrong
        "listen: {http: ['0.0.0.0:x', '0.0.0.0:1'], admin: '0.0.0.0:2'}",
    ],
)
def test_one_mistake_is_told_once(problems: Problems, text: str) -> None:
    assert len(problems(text + "\n", check_router=lambda spec: ["asked"])) == 1


def test_indices_are_those_of_the_file(problems: Problems) -> None:
    text = """
        services:
          - {nam: x}
          - {name: a, domain: a.b}
          - {name: a, domain: b.b, replicas: [x, unix:/a, y, unix:/a]}
    """
    assert problems(text) == [
        "2: services[0].name: this key is required",
        "2: services[0].nam: unknown key; did you mean `name`?",
        "4: services[2].replicas[0]: expected unix:/path or http://host:port, found `x`",
        "4: services[2].replicas[2]: expected unix:/path or http://host:port, found `y`",
        "4: services[2].name: `a` is also the name of services[1]",
        "4: services[2].replicas[3]: unix:/a is also services[2].replicas[1]",
    ]


def test_a_replica_with_a_lost_key(problems: Problems) -> None:
    text = "services: [{name: a, domain: a.b, replicas: [{path: /a}]}]\n"
    assert problems(text) == [
        "1: services[0].replicas[0].path: unknown key",
        "1: services[0].replicas[0]: a replica has exactly one of `socket`, `url` and `ssh`",
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            """
            domain: d
            model_endpoint: {domain: a.d}
            services: [name: a]
            """,
            ["2: model_endpoint.domain: the domain `a.d` is also that of services[0]"],
        ),
        (
            """
            model_endpoint: {domain: a.d, auth: true}
            """,
            ["1: model_endpoint.auth: nobody is configured to ask; add an `auth` table at the top"],
        ),
        (
            """
            domain: d
            services:
              - {name: a, router: r, router_replica: true}
            """,
            [
                "3: services[0].router_replica: the router `r` stands in front of this service "
                "already; set `router: null` here"
            ],
        ),
    ],
)
def test_models_and_router_replicas(problems: Problems, text: str, lines: list[str]) -> None:
    assert problems(text) == lines


def test_a_router_replica_has_no_router_in_front(load: Load) -> None:
    config = load("domain: d\nrouter: r\nservices: [{name: a, router_replica: true}, {name: b}]\n")
    assert [service.router for service in config.services] == [None, RouterSpec("r")]


@pytest.mark.parametrize(
    ("auth", "endpoint", "asks"),
    [
        ("", "{domain: m.d}", False),
        ("auth: {type: tokens, tokens: [{name: a, token: b}]}", "{domain: m.d}", True),
        (
            "auth: {type: tokens, tokens: [{name: a, token: b}]}",
            "{domain: m.d, auth: false}",
            False,
        ),
    ],
)
def test_a_model_endpoint_asks_where_somebody_can_be_asked(
    load: Load, auth: str, endpoint: str, asks: bool
) -> None:
    config = load(f"model_endpoint: {endpoint}\n{auth}\n")
    assert config.model_endpoint is not None
    assert config.model_endpoint.auth is asks
