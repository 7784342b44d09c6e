"""AsyncClient does what Client does."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from octavo_client import (
    AsyncClient,
    Choice,
    Chunk,
    Client,
    Completion,
    Health,
    RejectedError,
    RequestCancelledError,
    RequestTimeoutError,
    Retry,
    ServerError,
    UnavailableError,
    Usage,
)
from tests.client.scripted_server import Received, ScriptedServer, say_hello
from tests.client.test_cancellation import talk_for_ever

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def aclient(server: ScriptedServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.url) as connected:
        yield connected


async def assert_cancelled(call: Received) -> None:
    assert await asyncio.to_thread(call.ended.wait, 5), "the server still generates"
    assert not call.completed


async def test_generate_chat_and_streams(aclient: AsyncClient, server: ScriptedServer) -> None:
    messages = [{"role": "user", "content": "Say hello"}]

    whole = Completion((Choice("Hello, world", "stop"),), Usage(3, 3))
    assert await aclient.generate("Say hello", max_tokens=5) == whole
    assert await aclient.chat(messages) == whole
    chunks = [
        Chunk("Hello"),
        Chunk(", wor"),
        Chunk("ld", finish_reason="stop", usage=Usage(3, 3)),
    ]
    assert [chunk async for chunk in aclient.stream("Say hello")] == chunks
    assert [chunk async for chunk in aclient.stream_chat(messages)] == chunks
    assert await aclient.health() == Health(True, True, True)
    assert server.metadata_queries == 1


async def test_requests_are_those_of_the_sync_client(
    aclient: AsyncClient, server: ScriptedServer
) -> None:
    with Client(server.url) as client:
        client.generate("Say hello", temperature=0.5, priority=1, logprobs=2, request_id="r")
    await aclient.generate("Say hello", temperature=0.5, priority=1, logprobs=2, request_id="r")

    by_sync, by_async = server.received
    assert by_async.inputs == by_sync.inputs
    assert by_async.request_id == by_sync.request_id == "r"


async def test_streams_run_at_once(aclient: AsyncClient, server: ScriptedServer) -> None:
    all_open = threading.Barrier(32)

    def script(call: Received) -> Iterator[Any]:
        yield call.reply(call.inputs["text_input"])
        all_open.wait(10)
        yield call.reply("!", "stop")

    server.script = script

    answers = await asyncio.gather(*(aclient.generate(f"p{i}") for i in range(32)))

    assert [answer.text for answer in answers] == [f"p{i}!" for i in range(32)]


async def test_break_out_of_the_loop_cancels(aclient: AsyncClient, server: ScriptedServer) -> None:
    server.script = talk_for_ever

    async for chunk in aclient.stream("Go on"):
        assert chunk.text == "a"
        break

    gc.collect()
    await assert_cancelled(server.last)


async def test_end_of_a_with_block_cancels(aclient: AsyncClient, server: ScriptedServer) -> None:
    server.script = talk_for_ever

    async with aclient.stream("Go on") as stream:
        assert (await anext(stream)).text == "a"

    await assert_cancelled(server.last)
    assert [chunk async for chunk in stream] == []


async def test_cancelling_the_task_cancels(aclient: AsyncClient, server: ScriptedServer) -> None:
    server.script = talk_for_ever
    task = asyncio.create_task(aclient.generate("Go on"))
    await asyncio.to_thread(server.arrived.acquire)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_cancelled(server.last)


async def test_leaving_at_the_last_chunk_does_not_cancel(
    aclient: AsyncClient, server: ScriptedServer
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("a", "stop")
        assert not call.ended.wait(0.05)

    server.script = script

    async with aclient.stream("Be short") as stream:
        await anext(stream)

    assert await asyncio.to_thread(server.last.ended.wait, 5)
    assert server.last.completed


async def test_timeout(aclient: AsyncClient, server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        call.wait_for_end()
        yield call.flag_only()

    await aclient.generate("Connect")
    server.script = script

    with pytest.raises(RequestTimeoutError, match="no whole answer within"):
        await aclient.generate("Say hello", timeout=0.1)

    await assert_cancelled(server.last)


async def test_timeout_is_not_counted_anew_from_each_chunk(
    aclient: AsyncClient, server: ScriptedServer
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("a")
        assert not call.ended.wait(0.8)
        yield call.reply("b")
        call.wait_for_end()

    await aclient.generate("Connect")
    server.script = script
    started = time.monotonic()

    with pytest.raises(RequestTimeoutError, match="no whole answer within"):
        await aclient.generate("Go on", timeout=1)

    assert 1 <= time.monotonic() - started < 1.9
    await assert_cancelled(server.last)


@pytest.mark.parametrize(
    ("text", "kind"), [("Exceeds maximum queue size", RejectedError), ("boom", ServerError)]
)
async def test_errors(
    aclient: AsyncClient, server: ScriptedServer, text: str, kind: type[Exception]
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("Hel")
        yield call.error(text)

    server.script = script
    stream = aclient.stream("Say hello")

    assert (await anext(stream)).text == "Hel"
    with pytest.raises(kind, match=text):
        await anext(stream)
    assert await asyncio.to_thread(server.last.ended.wait, 5)
    assert server.last.completed, "an ended call was cancelled"


async def test_no_server(dead_url: str) -> None:
    async with AsyncClient(dead_url) as aclient:
        assert not (await aclient.health()).live
        with pytest.raises(UnavailableError, match="connect"):
            await aclient.generate("Say hello")


async def test_retry(server: ScriptedServer) -> None:
    pauses: list[float] = []

    async def note(pause: float) -> None:
        pauses.append(pause)

    def script(call: Received) -> Iterator[Any]:
        if len(server.received) < 3:
            yield call.front_end_error("Exceeds maximum queue size")
        else:
            yield from say_hello(call)

    server.script = script
    retry = Retry(attempts=3, backoff_s=0.5, random=lambda: 1.0, async_sleep=note)

    async with AsyncClient(server.url, retries=retry) as aclient:
        assert (await aclient.generate("Say hello")).text == "Hello, world"

    assert pauses == [0.5, 1.0]


async def test_wrong_arguments_raise_at_once(aclient: AsyncClient) -> None:
    with pytest.raises(TypeError, match="'temprature'"):
        aclient.stream("Say hello", temprature=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="timeout is"):
        aclient.stream("Say hello", timeout=0)


async def test_closing_the_client_ends_its_requests(
    aclient: AsyncClient, server: ScriptedServer
) -> None:
    def script(call: Received) -> Iterator[Any]:
        if call.inputs["stream"]:
            yield call.reply("Hel")
        call.wait_for_end()

    server.script = script
    stream = aclient.stream("Say hello")
    await anext(stream)
    waiting = asyncio.create_task(aclient.generate("Say hello"))
    await asyncio.to_thread(server.arrived.acquire)
    await asyncio.to_thread(server.arrived.acquire)

    await aclient.close()

    for pending in (waiting, anext(stream)):
        with pytest.raises(RequestCancelledError):
            await pending
    for call in server.received:
        await assert_cancelled(call)


async def test_closed_client_says_so(server: ScriptedServer) -> None:
    aclient = AsyncClient(server.url)
    await aclient.close()

    with pytest.raises(RuntimeError, match="closed"):
        await aclient.generate("Say hello")
