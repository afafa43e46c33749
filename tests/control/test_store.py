"""What was registered is on disk, whatever happens to the disk."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from plant import service

from gatewayd.control.saved import Saved, put_back, take
from gatewayd.control.state import AcmeSettings, State
from gatewayd.control.store import Store
from gatewayd.core.entrypoint import Entrypoint, ModelEntry, TgiFormat
from gatewayd.core.model import (
    Cors,
    RateLimit,
    Replica,
    RouterSpec,
    Service,
    SshHop,
    SshTunnel,
    TcpAddress,
    UnixAddress,
)
from gatewayd.core.secret import Secret

KEY = Secret("-----BEGIN PRIVATE KEY")


def whole() -> Saved:
    """Something of everything."""
    hops = (SshHop("u@jump", 2222, Secret("other")), SshHop("root@localhost", 10022, KEY))
    llama = Service(
        "main",
        "llama",
        ("llama.example.com", "alias.example.com"),
        auth=True,
        model="m",
        model_format=TgiFormat("{{ messages }}", "</s>"),
        rate_limits=(RateLimit("/v1/", 2.5, 3, "x-key"),),
        cors=Cors(),
        router=RouterSpec("sglang", args=(("flag", None), ("depth", "3"))),
        replicas=(
            Replica("a", UnixAddress("/run/a.sock"), "api", tunnel=SshTunnel(hops, 8000)),
            Replica("b", TcpAddress("10.0.0.1", 80), "api", internal_ip="10.0.0.1"),
        ),
        id="0" * 32,
        origin="api",
    )
    return Saved(
        {llama.key: llama, "main/mini": service("mini", origin="api")},
        {"main/own": (Replica("x", UnixAddress("/run/x.sock"), "api"),)},
        {"main": Entrypoint("main", "gateway.example.com", read_timeout=60)},
        {("main", "m"): ModelEntry("main", "m", "llama", 1700000000)},
        {"main": KEY},
        AcmeSettings("https://ca.example/dir", "kid", Secret("hmac")),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, clock=lambda: 0.0)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_comes_back(tmp_path: Path, store: Store) -> None:
    store.save(whole())
    assert Store(tmp_path).load() == whole()
    assert stat.S_IMODE((tmp_path / "registry.json").stat().st_mode) == 0o600


def test_nothing_is_an_empty_state(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    assert store.load() == Saved()
    assert not caplog.records


def test_a_key_stands_once(tmp_path: Path, store: Store) -> None:
    store.save(whole())
    assert (tmp_path / "registry.json").read_text().count(KEY.reveal()) == 1


def test_the_copy_before_is_kept(tmp_path: Path, store: Store) -> None:
    store.save(whole())
    newer = replace(whole(), services={})
    store.save(newer)
    assert files(tmp_path) == ["registry.json", "registry.json.previous"]
    (tmp_path / "registry.json").unlink()
    assert Store(tmp_path).load() == whole()
    assert stat.S_IMODE((tmp_path / "registry.json.previous").stat().st_mode) == 0o600


def version_2(data: bytes) -> bytes:
    return json.dumps(json.loads(data) | {"version": 2}).encode()


DAMAGE = {
    "truncated": (lambda data: data[:-200], "not JSON"),
    "emptied": (lambda data: b"", "empty"),
    "garbage": (lambda data: os.urandom(len(data)), "not JSON"),
    "zeroes": (lambda data: bytes(len(data)), "not JSON"),
    "deep": (lambda data: b"[" * 100_000, "not JSON"),
    "another file": (lambda data: b'{"services": []}', "not a state of gatewayd's registry"),
    "the future": (version_2, "its version is 2, this gatewayd reads 1"),
    "a piece": (
        lambda data: data.replace(b'"llama.example.com"', b"5"),
        "services[0] domains.0: Input should be a valid string",
    ),
    "a lost key": (
        lambda data: json.dumps(json.loads(data) | {"keys": {}}).encode(),
        "a private key of it is not there",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_moved_aside_and_the_copy_before_it_used(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    damage, words = DAMAGE[kind]
    store.save(whole())
    store.save(replace(whole(), entrypoints={}))
    newest = tmp_path / "registry.json"
    damaged = damage(newest.read_bytes())
    newest.write_bytes(damaged)
    assert store.load() == whole()
    (line,) = caplog.records
    assert line.levelno == logging.ERROR
    assert words in line.getMessage()
    assert "the copy before it is used" in line.getMessage()
    aside = tmp_path / "registry.json.damaged-19700101T000000Z"
    assert aside.read_bytes() == damaged
    # The next change writes a good one; the copy before it stays good meanwhile.
    store.save(whole())
    assert Store(tmp_path).load() == whole()


def test_what_can_be_read_of_the_only_copy_is_used(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(whole())
    newest = tmp_path / "registry.json"
    newest.write_bytes(newest.read_bytes().replace(b'"llama.example.com"', b"5"))
    loaded = store.load()
    assert list(loaded.services) == ["main/mini"]
    assert loaded.keys == {"main": KEY}
    assert "the rest of it is used" in caplog.text


def test_both_copies_lost(tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("registry.json", "registry.json.previous"):
        (tmp_path / name).write_text("{")
    assert store.load() == Saved()
    assert "nothing is known of what was registered" in caplog.text
    assert len(caplog.records) == 1


def test_a_field_of_a_newer_release_is_ignored(tmp_path: Path, store: Store) -> None:
    store.save(whole())
    newest = tmp_path / "registry.json"
    newest.write_bytes(newest.read_bytes().replace(b'"domains"', b'"next_year": 1, "domains"'))
    assert store.load() == whole()


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_save_that_fails_leaves_what_was_there(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store.save(whole())
    before = (tmp_path / "registry.json").read_bytes()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if step == "replace":
            patch.setattr(Path, "replace", full)
        elif step == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            (tmp_path / "registry.json.new").symlink_to("/dev/full")
            patch.setattr(Path, "unlink", lambda *_, **__: None)
            patch.setattr(os, "O_EXCL", 0)
        with pytest.raises(OSError, match="No space left"):
            store.save(Saved())
    assert (tmp_path / "registry.json").read_bytes() == before
    assert Store(tmp_path).load() == whole()


def test_beside_a_file(store: Store) -> None:
    """The file's services are the file's; what was added to them comes back."""
    own = replace(service("own", "f"), domains=("own.example.com",))
    state = State(services={own.key: own})
    assert put_back(whole(), state) == []
    assert [r.id for r in state.services["main/own"].replicas] == ["f", "x"]
    assert take(state) == whole()


def test_what_the_file_took_meanwhile_is_left_out_and_said() -> None:
    named = service("llama")
    domain = replace(service("other"), domains=("mini.example.com", "gateway.example.com"))
    state = State(services={named.key: named, domain.key: domain})
    assert put_back(whole(), state) == [
        "registered service main/llama is left out: the file has one of this name",
        "registered service main/mini is left out: the file gives a domain to main/other",
        "registered replica x is left out: the file has no service main/own",
        "models of main are not served at gateway.example.com: see the file",
    ]
    assert list(state.services) == ["main/llama", "main/other"]


def test_a_drain_does_not_outlive_its_call() -> None:
    mini = replace(service("mini", "a", origin="api"))
    drained = replace(mini, replicas=(replace(mini.replicas[0], draining=True),))
    saved = Saved({mini.key: drained})
    state = State()
    put_back(saved, state)
    assert not state.services[mini.key].replicas[0].draining
    put_back(saved, state := State(services={mini.key: drained}))
    assert state.services[mini.key].replicas[0].draining
