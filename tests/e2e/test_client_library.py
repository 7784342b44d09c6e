"""octavo_client against the real server, in both forms."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from octavo.cli.ports import Ports
from octavo_client import (
    AsyncClient,
    Client,
    InvalidRequestError,
    RequestTimeoutError,
    UnavailableError,
    UnknownModelError,
)
from tests.e2e.target import ROOT, Target, wait_until

PROMPT = "The list of options 🦙"
MESSAGES = [{"role": "user", "content": "What is a block?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 24}
LONG: dict[str, Any] = {**GREEDY, "max_tokens": 1900}


@pytest.fixture
def client(target: Target) -> Iterator[Client]:
    with Client(target.settings.grpc_url) as client:
        yield client


def num_cancelled(target: Target) -> float:
    return target.metrics().value("octavo_requests_total", finish_reason="cancelled")


def test_client_generates_what_the_server_sends(target: Target, client: Client) -> None:
    expected = target.generate(PROMPT, max_tokens=24)
    whole = client.generate(PROMPT, return_token_ids=True, **GREEDY)
    assert whole.text == expected.text and list(whole.token_ids or ()) == expected.token_ids
    assert whole.finish_reason == "length"
    assert whole.usage.completion_tokens == 24 and whole.usage.prompt_tokens > 4
    stop = whole.text[5:9]
    stopped = client.generate(PROMPT, stop=stop, **GREEDY)
    assert stopped.text == whole.text[: whole.text.index(stop)] and stopped.finish_reason == "stop"


def test_client_streams_deltas_with_the_end_in_the_last(client: Client) -> None:
    whole = client.generate(PROMPT, **GREEDY)
    chunks = list(client.stream(PROMPT, **GREEDY))
    assert len(chunks) > 1 and "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length" and chunks[-1].usage == whole.usage


def test_client_returns_logprobs(client: Client) -> None:
    whole = client.generate(PROMPT, logprobs=2, return_token_ids=True, **GREEDY)
    assert whole.logprobs is not None and len(whole.logprobs) == 24
    own = [e[i].logprob for e, i in zip(whole.logprobs, whole.token_ids or (), strict=True)]
    assert whole.cumulative_logprob == pytest.approx(sum(own), abs=1e-3)


def test_client_chats(client: Client) -> None:
    whole = client.chat(MESSAGES, **GREEDY)
    streamed = "".join(chunk.text for chunk in client.stream_chat(MESSAGES, **GREEDY))
    assert whole.text == streamed and whole.usage.completion_tokens == 24


def test_client_sees_the_health(client: Client) -> None:
    assert client.health().ok
    with Client(f"127.0.0.1:{Ports.free().grpc}") as nobody:
        assert not nobody.health(timeout=1).live
        with pytest.raises(UnavailableError):
            nobody.generate(PROMPT, timeout=1)


def test_client_that_leaves_a_stream_cancels_it(target: Target, client: Client) -> None:
    before = target.settled_metrics().value("octavo_requests_total", finish_reason="cancelled")
    for chunk in client.stream(PROMPT, **LONG):
        assert chunk.finish_reason is None
        break
    with client.stream(PROMPT, **LONG) as stream:
        next(stream)
    wait_until(lambda: num_cancelled(target) == before + 2, "both cancelled", 5)


def test_client_raises_what_is_wrong_with_a_request(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match=r"^temperature: got -1; .* 0"):
        client.generate(PROMPT, temperature=-1)
    with pytest.raises(InvalidRequestError, match=r"^prompt: got 5000 tokens; at most 2047"):
        next(client.stream([10] * 5000))


def test_client_raises_when_the_model_is_unknown(target: Target) -> None:
    with (
        Client(target.settings.grpc_url, model="lmm") as client,
        pytest.raises(UnknownModelError, match="lmm"),
    ):
        client.generate(PROMPT)


def test_client_times_out_while_it_runs(target: Target, client: Client) -> None:
    before = target.settled_metrics().value("octavo_requests_total", finish_reason="deadline")
    began_s = time.monotonic()
    with pytest.raises(RequestTimeoutError):
        client.generate(PROMPT, timeout=0.5, **LONG)
    assert 0.5 <= time.monotonic() - began_s < 1.0
    after = target.settled_metrics().value("octavo_requests_total", finish_reason="deadline")
    assert after == before + 1, "the server has ended it by itself"


def test_async_client_does_as_the_client(target: Target, client: Client) -> None:
    async def use() -> None:
        async with AsyncClient(target.settings.grpc_url) as other:
            assert (await other.health()).ok
            several = await asyncio.gather(*(other.generate(PROMPT, **GREEDY) for _ in range(6)))
            assert set(several) == {client.generate(PROMPT, **GREEDY)}
            chunks = [chunk async for chunk in other.stream(PROMPT, **GREEDY)]
            assert "".join(chunk.text for chunk in chunks) == several[0].text
            assert await other.chat(MESSAGES, **GREEDY) == client.chat(MESSAGES, **GREEDY)
            with pytest.raises(InvalidRequestError, match="top_p: got 2"):
                await other.generate(PROMPT, top_p=2)
            with pytest.raises(RequestTimeoutError):
                await other.generate(PROMPT, timeout=0.3, **LONG)

    asyncio.run(use())


def test_async_client_that_leaves_a_stream_cancels_it(target: Target) -> None:
    before = target.settled_metrics().value("octavo_requests_total", finish_reason="cancelled")

    async def leave() -> None:
        async with AsyncClient(target.settings.grpc_url) as client:
            async with client.stream(PROMPT, **LONG) as stream:
                await anext(stream)
            task = asyncio.create_task(client.generate(PROMPT, **LONG))
            await asyncio.sleep(0.5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(leave())
    wait_until(lambda: num_cancelled(target) == before + 2, "both cancelled", 5)


def run_cli(target: Target, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from octavo_client.cli import main; main()", *arguments]
    return subprocess.run(
        [*command, "--url", target.settings.grpc_url],
        input=stdin, capture_output=True, encoding="utf-8", timeout=60, cwd=ROOT,
    )  # fmt: skip


def test_command_line_completes(target: Target, client: Client) -> None:
    whole = client.generate(PROMPT, temperature=0, max_tokens=12)
    options = ("--max-tokens", "12", "--temperature", "0")
    plain = run_cli(target, "complete", PROMPT, *options)
    assert plain.returncode == 0
    assert plain.stdout.removesuffix("\n") == whole.text.removesuffix("\n")
    piped = run_cli(target, "complete", "--json", *options, stdin=PROMPT)
    answer = json.loads(piped.stdout)
    assert answer["text"] == whole.text and answer["finish_reason"] == whole.finish_reason
    assert answer["usage"]["completion_tokens"] == whole.usage.completion_tokens


def test_command_line_tells_what_is_wrong(target: Target) -> None:
    refused = run_cli(target, "complete", PROMPT, "--top-p", "2")
    assert refused.returncode == 1 and not refused.stdout
    assert "top_p: got 2" in refused.stderr


def test_command_line_chats_from_a_pipe(target: Target, client: Client) -> None:
    question = MESSAGES[0]["content"]
    chat = run_cli(
        target, "chat", "--max-tokens", "12", "--temperature", "0", stdin=f"{question}\n/exit\n"
    )
    expected = client.chat(MESSAGES, temperature=0, max_tokens=12).text
    assert chat.returncode == 0 and chat.stdout.strip("\n") == expected.strip("\n")
