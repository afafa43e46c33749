"""Slots: whoever holds one is kept alive, watched and replaced."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import time
from collections.abc import Callable

import pytest
from plant import Plant, service
from waiting import stall, until

from gatewayd.control import slot as slot_module
from gatewayd.control import watch as watch_module
from gatewayd.control import workers as workers_module
from gatewayd.core.messages import ReopenLogs
from gatewayd.core.model import TcpAddress
from gatewayd.net.alarm import Alarm
from gatewayd.net.listeners import bind_slots

MakePlant = Callable[..., Plant]


async def test_every_slot_gets_the_tables_and_its_own_sockets(make_plant: MakePlant) -> None:
    listener = bind_slots("127.0.0.1:0", TcpAddress("127.0.0.1", 0), 2)
    async with make_plant(listeners=[listener]) as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        frames = plant.frames("configure")
        assert sorted((f["slot"], f["fds"], tuple(f["kinds"])) for f in frames) == [
            (0, 5, ("tcp",)),
            (1, 5, ("tcp",)),
        ]
    listener.close()


async def test_a_killed_worker_is_replaced_and_gets_the_newest(make_plant: MakePlant) -> None:
    async with make_plant() as plant:
        plant.state.services["main/llama"] = service("llama", "a")
        await plant.publisher.publish()
        await plant.all_ready()
        old = plant.process(0)
        os.kill(old.pid, signal.SIGKILL)
        killed = time.monotonic()
        await until(lambda: plant.process(1).alive and "ready worker 0.2" in plant.events)
        await plant.all_ready()
        assert time.monotonic() - killed < 1.5
        assert plant.process(0).pid != old.pid
        assert plant.workers.slots[0].restarts == plant.workers.restarts == 1
        assert plant.workers.slots[0].last_exit == "was killed by SIGKILL"
        (frame,) = plant.frames("snapshot", plant.process(0).pid)
        assert frame["targets"]["llama.example.com"]["endpoints"] == {"a": "unix:/run/a.sock"}


async def test_the_counts_of_a_dead_worker_are_cleared(make_plant: MakePlant) -> None:
    async with make_plant(behaviours={0: "ack+heavy"}) as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        assert plant.loads.load(0) == 1
        plant.behaviours[0] = "ack"
        plant.process(0).kill()
        await until(lambda: "died worker 0.1" in plant.events)
        assert plant.loads.load(0) == 0


async def test_a_silent_worker_is_killed_and_replaced_at_once(
    make_plant: MakePlant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slot_module, "_YOUNG_S", 0.0)
    monkeypatch.setattr(watch_module, "_LOOK_S", 0.1)
    async with make_plant(behaviours={1: "silent"}) as plant:
        await plant.publisher.publish()
        await until(lambda: "ready worker 1.1" in plant.events)
        plant.behaviours[1] = "ack"
        await until(lambda: "ready worker 1.2" in plant.events)
        await plant.all_ready()
        assert plant.workers.slots[0].restarts == 0
    assert "has been silent for too long" in caplog.text
    assert "worker 1 (pid" in caplog.text
    assert "replaced at once" in caplog.text


async def reports(plant: Plant, count: int) -> None:
    """Until there are so many more. A process reports every 50 ms."""
    enough = len(plant.reports) + count
    await until(lambda: len(plant.reports) >= enough)


async def test_a_worker_in_which_nothing_happens_is_not_silent(
    make_plant: MakePlant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_LOOK_S", 0.1)
    async with make_plant(behaviours={1: "ack+idle"}) as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        await reports(plant, 20)
        assert plant.workers.restarts == 0
        assert plant.process(1).connections == 2


async def test_who_has_never_given_a_sign_of_life_has_longer(
    make_plant: MakePlant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads a first snapshot, or a slow disk."""
    monkeypatch.setattr(watch_module, "_LOOK_S", 0.05)
    monkeypatch.setattr(watch_module, "_START_S", 1.0)
    monkeypatch.setattr(slot_module, "_YOUNG_S", 0.0)
    async with make_plant(workers=1) as plant:  # nothing is published, so it is never ready
        began = asyncio.get_running_loop().time()
        await until(lambda: "died worker 0.1" in plant.events)
        assert asyncio.get_running_loop().time() - began >= 1.0


async def test_a_stall_of_control_kills_nobody(
    make_plant: MakePlant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_LOOK_S", 0.1)
    async with make_plant() as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        stall(1.0)  # ten deadlines long
        await reports(plant, 8)
        assert plant.workers.restarts == 0


async def test_a_stall_of_everybody_kills_nobody(
    make_plant: MakePlant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a virtual machine stands still: all alarms ring when it goes on."""
    monkeypatch.setattr(watch_module, "_LOOK_S", 0.2)
    async with make_plant() as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        pids = [plant.process(slot).pid for slot in (0, 1)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        stall(1.0)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        await reports(plant, 16)
        assert plant.workers.restarts == 0


async def test_a_slot_is_tried_again_when_its_process_cannot_be_watched(
    make_plant: MakePlant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There may be no descriptor left for that, and its process is not left over."""
    tries = 0

    def create() -> Alarm:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return really()

    really = Alarm.create
    monkeypatch.setattr(Alarm, "create", create)
    async with make_plant(workers=1) as plant:
        await plant.publisher.publish()
        await until(lambda: "ready worker 0.2" in plant.events)
    assert "worker 0 could not be started: [Errno 24] Too many open files" in caplog.text


async def test_a_worker_that_dies_at_start_is_tried_with_backoff(
    make_plant: MakePlant, caplog: pytest.LogCaptureFixture
) -> None:
    async with make_plant(behaviours={0: "dead"}) as plant:
        await plant.publisher.publish()
        await until(lambda: "spawned worker 0.4" in plant.events)
        assert not plant.publisher.up_to_date()
        plant.behaviours[0] = "ack"
        await plant.all_ready()
    texts = [r.getMessage() for r in caplog.records if "exited with status 3" in r.getMessage()]
    delays = [text.rpartition("next try in ")[2] for text in texts]
    assert delays[:3] == ["0.1 s", "0.2 s", "0.4 s"]


async def test_a_command_that_cannot_be_run_is_tried_again(
    make_plant: MakePlant, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = make_plant(workers=1)
    argv = plant.workers.slots[0]._argv
    monkeypatch.setattr(plant.workers.slots[0], "_argv", lambda role, fd: ("/no/such/program",))
    async with plant:
        await until(lambda: "could not be started" in caplog.text)
        monkeypatch.setattr(plant.workers.slots[0], "_argv", argv)
        await plant.publisher.publish()
        await plant.all_ready()


async def test_draining_lets_the_last_report_count(make_plant: MakePlant) -> None:
    async with make_plant(behaviours={0: "last-words", 1: "last-words"}) as plant:
        plant.telemetry.keep({"main/llama"})
        await plant.publisher.publish()
        await plant.all_ready()
        await plant.workers.drain(5.0)
        assert plant.telemetry.totals()["main/llama"].codes == {200: 2}
        assert plant.workers.restarts == 0
        assert [frame["timeout"] for frame in plant.frames("drain")] == [5.0, 5.0]


async def test_who_does_not_drain_is_killed(
    make_plant: MakePlant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers_module, "_AFTER_DRAIN_S", 0.1)
    async with make_plant(workers=1, behaviours={0: "ack+stubborn"}) as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        await asyncio.wait_for(plant.workers.drain(0.1), 5)
        assert plant.events[-1] == "died worker 0.1"
    assert "did not end within 0.2 s and is killed" in caplog.text


async def test_frames_for_all_reach_all(make_plant: MakePlant) -> None:
    async with make_plant() as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        plant.workers.broadcast(ReopenLogs())
        await until(lambda: len(plant.frames("reopen")) == 2)


async def test_a_worker_is_out_of_reach_of_the_terminal(make_plant: MakePlant) -> None:
    async with make_plant(workers=1) as plant:
        await plant.publisher.publish()
        await plant.all_ready()
        assert os.getpgid(plant.process(0).pid) != os.getpgid(0)


async def test_errors_of_a_stranger_are_logged_once(
    make_plant: MakePlant, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with make_plant(workers=1) as plant:
        await plant.publisher.publish()
        await plant.all_ready()
    assert not caplog.records
