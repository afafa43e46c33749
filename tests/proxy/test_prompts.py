"""Chat templates in their process: what models' templates use, and what strangers' may not do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conversation import soon
from waiting import until

from gatewayd.proxy import prompts as module
from gatewayd.proxy.prompts import PromptFailedError, Prompts, PromptsBusyError

HI = [{"role": "user", "content": "hi"}]
CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""


@pytest.fixture
async def prompts() -> AsyncIterator[Prompts]:
    prompts = Prompts()
    yield prompts
    await prompts.aclose()


async def make(prompts: Prompts, template: str, **variables: Any) -> str:
    known: dict[str, object] = {"messages": HI, "add_generation_prompt": True, "eos_token": "</s>"}
    return await soon(prompts.render(template, known | variables))


async def test_a_template_as_models_have_them(prompts: Prompts) -> None:
    assert await make(prompts, CHATML) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n\n"
    )
    assert await make(prompts, CHATML, messages=[], add_generation_prompt=False) == ""


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{{ messages[0].content + eos_token }}", "hi</s>"),
        ("{{ bos_token }}x", "x"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hi"}]'),
        ("{{ '<ä>' | tojson }}", '"<ä>"'),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("{%- set ns = namespace(x=1) -%}{% set ns.x = 2 %}{{ ns.x }}", "2"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% macro a(b) %}<{{ b }}>{% endmacro %}{{ a(1) }}", "<1>"),
        ("{{ raise_exception('no') if messages | length > 1 else 'yes' }}", "yes"),
        ("{{ '\U0001f600' }}", "\U0001f600"),
    ],
)
async def test_what_templates_use(prompts: Prompts, template: str, prompt: str) -> None:
    assert await make(prompts, template) == prompt


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "Expected an expression"),
        ("{{ messages[0].content.nothing.at_all }}", "has no attribute"),
        ("{{ 1 // 0 }}", "zero"),
        # ways out of the sandbox, and into what belongs to the gateway
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.__init__.__globals__ }}", "unsafe"),
        ("{{ raise_exception.__globals__['os'].environ }}", "unsafe"),
        ("{{ strftime_now.__globals__['os'] }}", "unsafe"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", "unsafe"),
        ("{{ '{0.__class__}' | format(1) }}", "not all arguments|unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{{ self.__init__.__globals__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update(a=1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% import 'os' as os %}", "no loader"),
        ("{{ range(10000000) | list | length }}", "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself without end"),
        ("{{ 'x' * 1000000000 }}", "memory|too long"),
        ("{{ 'x'.center(2000000000) }}", "memory|too long"),
        ("{% for a in range(90000) %}{{ 'x' * 10000 }}{% endfor %}", "too long"),
    ],
)
async def test_what_templates_may_not(prompts: Prompts, template: str, why: str) -> None:
    with pytest.raises(PromptFailedError, match=why):
        await make(prompts, template)
    assert await make(prompts, "still {{ messages[0].content }}") == "still hi"


async def test_its_process_can_open_nothing(prompts: Prompts) -> None:
    await make(prompts, CHATML)
    process = f"/proc/{pid(prompts, CHATML)}"
    with open(f"{process}/limits") as file:  # noqa: ASYNC230
        limits = {line[:25].strip(): line[26:].split()[0] for line in file.readlines()[1:]}
    assert sorted(os.listdir(f"{process}/fd")) == ["0", "1", "2"]
    assert limits["Max open files"] == "3"
    assert limits["Max processes"] == limits["Max file size"] == "0"


async def test_nothing_of_the_gateway_s_environment_is_there(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALICE_TOKEN", "sesame")
    await make(prompts, CHATML)
    with open(f"/proc/{pid(prompts, CHATML)}/environ", "rb") as file:  # noqa: ASYNC230
        assert b"sesame" not in file.read()


LOOP = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


def pid(prompts: Prompts, template: str) -> int:
    process = prompts._renderers[template]._process
    assert process is not None
    return process.pid


async def test_a_template_that_does_not_end_is_ended_and_delays_no_other(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(prompts, CHATML)
    monkeypatch.setattr(module, "TIMEOUT_S", 1.0)
    endless = asyncio.create_task(make(prompts, LOOP))
    await until(lambda: LOOP in prompts._renderers and prompts._renderers[LOOP]._process)
    number = pid(prompts, LOOP)
    assert await make(prompts, CHATML)
    assert not endless.done()
    with pytest.raises(PromptFailedError, match="too long"):
        await endless
    await until(lambda: not os.path.exists(f"/proc/{number}"), "its process is gone")


async def test_a_process_that_was_killed_is_replaced(prompts: Prompts) -> None:
    await make(prompts, CHATML)
    os.kill(pid(prompts, CHATML), 9)
    with pytest.raises(PromptFailedError, match="ended the process"):
        await make(prompts, CHATML)
    assert await make(prompts, CHATML)


async def test_one_process_answers_many_in_order(prompts: Prompts) -> None:
    template = "{{ messages[0].content }}"
    answers = await asyncio.gather(
        *(make(prompts, template, messages=[{"content": str(n)}]) for n in range(50))
    )
    assert answers == [str(n) for n in range(50)]


async def test_who_stops_waiting_leaves_no_answer_to_the_next(prompts: Prompts) -> None:
    template = "{{ messages[0].content }}"
    await make(prompts, template)
    for _ in range(3):
        leaver = asyncio.create_task(make(prompts, template, messages=[{"content": "theirs"}]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        leaver.cancel()
        assert await make(prompts, template, messages=[{"content": "mine"}]) == "mine"


async def test_there_is_room_for_so_many_at_a_time(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RENDERERS_MAX", 1)
    running = asyncio.create_task(make(prompts, "a"))
    await asyncio.sleep(0)
    with pytest.raises(PromptsBusyError):
        await make(prompts, "b")
    assert await running == "a"
    assert await make(prompts, "b") == "b"


async def test_the_longest_unused_template_makes_room(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RENDERERS_MAX", 2)
    await make(prompts, "a")
    await make(prompts, "b")
    await make(prompts, "a")
    number = pid(prompts, "b")
    await make(prompts, "c")
    assert list(prompts._renderers) == ["a", "c"]
    await until(lambda: not os.path.exists(f"/proc/{number}"), "its process is gone")


async def test_who_leaves_while_the_process_starts_leaves_none(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, begun, go = asyncio.create_subprocess_exec, asyncio.Event(), asyncio.Event()
    started: list[asyncio.subprocess.Process] = []

    async def slowly(*argv: str, **options: Any) -> asyncio.subprocess.Process:
        started.append(await start(*argv, **options))
        begun.set()
        await go.wait()
        return started[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    making = asyncio.create_task(make(prompts, CHATML))
    await soon(begun.wait())
    making.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await soon(making)
    assert await soon(started[0].wait()) < 0
