"""A timer that one process puts off and another one hears."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time

import pytest

from gatewayd.net.alarm import Alarm

_PUTS_OFF = """
import sys
from gatewayd.net.alarm import Alarm
Alarm(int(sys.argv[1])).ring_in(60.0)
"""


async def rang(alarm: Alarm) -> None:
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(alarm.fd, heard.set)
    async with asyncio.timeout(20):
        await heard.wait()
    loop.remove_reader(alarm.fd)


async def test_it_wakes_who_waits_for_it_and_not_before() -> None:
    alarm = Alarm.create()
    assert not alarm.rings
    began = time.monotonic()
    alarm.ring_in(0.05)
    assert not alarm.rings
    await rang(alarm)
    assert time.monotonic() - began >= 0.05
    assert alarm.rings  # until it is put off
    alarm.ring_in(60.0)
    assert not alarm.rings
    alarm.close()


async def test_another_process_puts_it_off() -> None:
    alarm = Alarm.create()
    alarm.ring_in(0.01)
    await rang(alarm)
    command = (sys.executable, "-c", _PUTS_OFF, str(alarm.fd))
    process = await asyncio.create_subprocess_exec(*command, pass_fds=[alarm.fd])
    assert await process.wait() == 0
    assert not alarm.rings
    alarm.close()


def test_what_the_kernel_refuses_is_said() -> None:
    read, write = os.pipe()
    alarm = Alarm(read)
    with pytest.raises(OSError, match="timerfd_settime") as raised:
        alarm.ring_in(1.0)
    assert raised.value.errno == errno.EINVAL
    os.close(write)
    alarm.close()


def test_no_other_program_inherits_it() -> None:
    alarm = Alarm.create()
    assert not os.get_inheritable(alarm.fd)
    assert not os.get_blocking(alarm.fd)
    alarm.close()
