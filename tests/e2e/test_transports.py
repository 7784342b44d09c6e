"""gRPC and HTTP against the real server, in both forms: the same answers and the same errors."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from octavo_client import (
    AsyncClient,
    Choice,
    Client,
    Completion,
    OctavoError,
    RejectedError,
    RequestTimeoutError,
    Usage,
)
from tests.e2e.target import (
    ROOT,
    SLOW,
    VOCAB_SIZE,
    Target,
    bounded_repository,
    prompt_ids,
    serving,
    wait_until,
)

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
FULL: dict[str, Any] = {**GREEDY, "logprobs": 2, "return_token_ids": True}
LONG: dict[str, Any] = {**GREEDY, "ignore_eos": True, "max_tokens": 1900}

PROMPTS: list[Any] = [
    "The function returns",
    "a",
    " ",
    "\n\n\n",
    "line one\r\nline two\ttabbed",
    'quotes " and \\ backslashes \\n \\u0041',
    "data: {}\n\ndata: x",
    "Grüße aus Köln",
    "日本語のテキスト",
    "Ελληνικά и русский",
    "🦙🦙🏽👩‍👩‍👧",
    "e\u0301 combined, \u2028 separated, \u00a0 kept",
    "\x00\x01\x7f controls",
    "word " * 200,
    [10],
    prompt_ids(2),
    prompt_ids(300),
    [VOCAB_SIZE - 1] * 3,
    [{"role": "user", "content": "What is a block?"}],
    [{"role": "system", "content": "Be kind 🙂"}, {"role": "user", "content": 'Say "hi"\n'}],
]


@dataclass(frozen=True)
class Both:
    """The two transports to one server."""

    grpc: Client
    http: Client

    def ask(self, question: Callable[[Client], Any]) -> tuple[Any, Any]:
        return question(self.grpc), question(self.http)


@pytest.fixture
def both(target: Target) -> Iterator[Both]:
    with Client(target.settings.grpc_url) as grpc, Client(target.settings.http_url) as http:
        yield Both(grpc, http)


def is_chat(prompt: Any) -> bool:
    return isinstance(prompt[0], dict)


def whole(client: Client, prompt: Any, **options: Any) -> Completion:
    return (client.chat if is_chat(prompt) else client.generate)(prompt, **options)


def streamed(client: Client, prompt: Any, **options: Any) -> Completion:
    """The chunks of a stream, put together here."""
    chunks = list((client.stream_chat if is_chat(prompt) else client.stream)(prompt, **options))
    last = chunks[-1]
    assert last.usage is not None and last.finish_reason is not None
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    token_ids = tuple(i for chunk in chunks for i in chunk.token_ids or ())
    logprobs = tuple(entry for chunk in chunks for entry in chunk.logprobs or ())
    text = "".join(chunk.text for chunk in chunks)
    choice = Choice(text, last.finish_reason, token_ids, logprobs, last.cumulative_logprob)
    return Completion((choice,), last.usage)


def assert_same(one: Completion, other: Completion) -> None:
    """All that a cache does not change; log-probabilities within 1e-5."""
    assert replace(one.usage, cached_tokens=None) == replace(other.usage, cached_tokens=None)
    assert len(one.choices) == len(other.choices)
    for a, b in zip(one.choices, other.choices, strict=True):
        assert (a.text, a.finish_reason, a.token_ids) == (b.text, b.finish_reason, b.token_ids)
        assert a.cumulative_logprob == pytest.approx(b.cumulative_logprob, abs=1e-5)
        assert_same_logprobs(a.logprobs, b.logprobs)
    assert_same_logprobs(one.prompt_logprobs, other.prompt_logprobs)


def assert_same_logprobs(one: Any, other: Any) -> None:
    assert (one is None) == (other is None)
    for a, b in zip(one or (), other or (), strict=True):
        assert (a is None) == (b is None)
        assert (a or {}).keys() == (b or {}).keys()
        for token_id, entry in (a or {}).items():
            assert (entry.rank, entry.decoded_token) == (
                b[token_id].rank, b[token_id].decoded_token,
            )  # fmt: skip
            assert entry.logprob == pytest.approx(b[token_id].logprob, abs=1e-5)


@pytest.mark.parametrize("ask", [whole, streamed])
def test_answers_are_the_same(both: Both, ask: Callable[..., Completion]) -> None:
    assert len(PROMPTS) == 20
    for prompt in PROMPTS:
        over_grpc, over_http = (ask(client, prompt, **FULL) for client in (both.grpc, both.http))

        assert_same(over_grpc, over_http)
        assert over_http.token_ids and over_http.logprobs
        assert len(over_http.token_ids) == over_http.usage.completion_tokens


def test_streams_come_in_pieces_over_http(both: Both) -> None:
    chunks = list(both.http.stream(PROMPTS[0], **{**GREEDY, "max_tokens": 24}))

    assert len(chunks) > 4


BAD: dict[str, Callable[[Client], Any]] = {
    "empty text": lambda c: c.generate(""),
    "no ids": lambda c: c.generate([]),
    "an id beyond the vocabulary": lambda c: c.generate([10, VOCAB_SIZE]),
    "a negative id": lambda c: c.generate([-1]),
    "a prompt beyond the context": lambda c: list(c.stream(prompt_ids(3000))),
    "a text beyond the context": lambda c: c.generate("a" * 1_000_000),
    "top_p": lambda c: c.generate("a", top_p=2),
    "top_p in a stream": lambda c: list(c.stream("a", top_p=2)),
    "not a number": lambda c: c.generate("a", temperature=float("nan")),
    "max_tokens": lambda c: c.generate("a", max_tokens=10**6),
    "an empty stop text": lambda c: c.generate("a", stop=["", "é"]),
    "a message without content": lambda c: c.chat([{"role": "user"}]),
    "no messages": lambda c: list(c.stream_chat([])),
    "a deadline": lambda c: c.generate("a", deadline_ms=200, **LONG),
    "a deadline in a stream": lambda c: list(c.stream("a", deadline_ms=200, **LONG)),
}


def failure(question: Callable[[Client], Any]) -> Callable[[Client], tuple[type[Exception], str]]:
    def ask(client: Client) -> tuple[type[Exception], str]:
        with pytest.raises(OctavoError) as caught:
            question(client)
        return type(caught.value), caught.value.message

    return ask


@pytest.mark.parametrize("name", BAD)
def test_errors_are_the_same(both: Both, name: str) -> None:
    over_grpc, over_http = both.ask(failure(BAD[name]))

    assert over_http == over_grpc


@pytest.mark.parametrize("where", [{"model": "lmm"}, {"model_version": "7"}])
def test_unknown_models_are_the_same(target: Target, where: dict[str, Any]) -> None:
    def fail(url: str) -> Any:
        with Client(url, **where) as client:
            return failure(lambda c: c.generate("a"))(client)

    assert fail(target.settings.http_url) == fail(target.settings.grpc_url)


@pytest.mark.parametrize("stream", [False, True], ids=["generate", "stream"])
def test_http_times_out_while_it_runs(target: Target, both: Both, stream: bool) -> None:
    began_s = time.monotonic()
    with pytest.raises(RequestTimeoutError):
        if stream:
            list(both.http.stream("a", timeout=0.5, **LONG))
        else:
            both.http.generate("a", timeout=0.5, **LONG)
    assert 0.5 <= time.monotonic() - began_s < 1.0
    target.wait_until_idle()


def assert_freed(target: Target, cancelled_before: float, count: int) -> None:
    # One condition: a flush of metrics that is under way has some of them old and some new.
    def is_freed() -> bool:
        metrics = target.metrics()
        cancelled = metrics.value("octavo_requests_total", finish_reason="cancelled")
        used = metrics.value("octavo_kv_blocks_used")
        return cancelled == cancelled_before + count and used == 0

    wait_until(is_freed, "all cancelled and their blocks free", 5)


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Target]:
    """One place and one seat in the queue."""
    repository = bounded_repository(tmp_path, max_queue_size=1)
    with serving(
        tmp_path, "vllm", repository=repository, max_num_seqs=1, max_num_waiting=0, **SLOW
    ) as target:
        yield target


def test_http_gives_up_in_the_queue_and_rejections_are_the_same(single: Target) -> None:
    with (
        Client(single.settings.grpc_url) as grpc,
        Client(single.settings.http_url) as http,
        http.stream("a", **LONG) as running,
    ):
        next(running)
        began_s = time.monotonic()
        with pytest.raises(RequestTimeoutError, match=r"no whole answer within 0\.5 s"):
            http.generate("a", timeout=0.5, **GREEDY)
        assert 0.5 <= time.monotonic() - began_s < 1.1
        # Triton has not seen it leave, so its seat is still taken.
        single.wait_until_queued(1)
        rejected = failure(lambda client: client.generate("a", **GREEDY))
        assert rejected(http) == rejected(grpc)
        assert rejected(http)[0] is RejectedError
        next(running)


def test_leaving_an_http_stream_frees_its_blocks(target: Target, both: Both) -> None:
    before = target.settled_metrics().value("octavo_requests_total", finish_reason="cancelled")
    for chunk in both.http.stream("a", **LONG):
        assert chunk.finish_reason is None
        break
    with both.http.stream("a", **LONG) as stream:
        next(stream)
    assert_freed(target, before, 2)


def test_closing_an_http_client_frees_the_blocks(target: Target) -> None:
    before = target.settled_metrics().value("octavo_requests_total", finish_reason="cancelled")
    client = Client(target.settings.http_url)
    streams = [client.stream("a", **LONG) for _ in range(2)]
    for stream in streams:
        next(stream)
    client.close()
    assert_freed(target, before, 2)


def test_threads_share_an_http_client(both: Both) -> None:
    alone = both.http.generate("The function returns", **GREEDY)
    with ThreadPoolExecutor(12) as pool:
        asked = pool.map(lambda _: both.http.generate("The function returns", **GREEDY), range(24))
        answers = list(asked)
    assert {answer.text for answer in answers} == {alone.text}


def test_async_http_client_does_as_the_others(target: Target, both: Both) -> None:
    before = target.settled_metrics().value("octavo_requests_total", finish_reason="cancelled")

    async def use() -> None:
        async with AsyncClient(target.settings.http_url) as client:
            assert (await client.health()).ok
            several = await asyncio.gather(*(client.generate(p, **GREEDY) for p in PROMPTS[:6]))
            for prompt, answer in zip(PROMPTS, several, strict=False):
                assert answer.text == both.grpc.generate(prompt, **GREEDY).text
            with pytest.raises(OctavoError, match="top_p: got 2"):
                await client.generate("a", top_p=2)
            with pytest.raises(RequestTimeoutError):
                await client.generate("a", timeout=0.3, **LONG)
            async with client.stream("a", **LONG) as stream:
                await anext(stream)
            task = asyncio.create_task(anext(client.stream("a", **LONG)))
            await task

    asyncio.run(use())
    assert_freed(target, before, 2)


def test_health_is_the_same(both: Both, target: Target) -> None:
    assert both.http.health() == both.grpc.health()
    with Client(target.settings.http_url, model="lmm") as other:
        health = other.health()
        assert health.ready and not health.model_ready


def test_command_line_takes_an_http_url(target: Target, both: Both) -> None:
    command = [sys.executable, "-c", "from octavo_client.cli import main; main()"]
    options = ["--max-tokens", "8", "--temperature", "0", "--url", target.settings.http_url]

    def run(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [*command, *arguments, *options],
            input=stdin, capture_output=True, encoding="utf-8", timeout=60, cwd=ROOT, check=True,
        )  # fmt: skip
        return done.stdout.strip("\n")

    completed = run("complete", "The function returns")
    assert completed == both.grpc.generate("The function returns", **GREEDY).text.strip("\n")
    chatted = run("chat", stdin="What is a block?\n/exit\n")
    question = [{"role": "user", "content": "What is a block?"}]
    assert chatted == both.grpc.chat(question, **GREEDY).text.strip("\n")


@pytest.mark.parametrize("ask", ["generate", "stream"])
def test_choices_are_the_same(both: Both, ask: str) -> None:
    options: dict[str, Any] = {**FULL, "temperature": 1, "seed": 7, "n": 3, "ignore_eos": True}

    def question(client: Client) -> Any:
        if ask == "generate":
            return client.generate("The function returns", **options)
        texts = ["", "", ""]
        ids: list[tuple[int, ...]] = [(), (), ()]
        for chunk in client.stream("The function returns", **options):
            texts[chunk.index] += chunk.text
            ids[chunk.index] += chunk.token_ids or ()
        assert chunk.usage is not None
        choices = tuple(Choice(t, "length", i) for t, i in zip(texts, ids, strict=True))
        return Completion(choices, chunk.usage)

    over_grpc, over_http = both.ask(question)

    assert_same(over_grpc, over_http)
    assert len({choice.text for choice in over_http.choices}) > 1
    assert [len(choice.token_ids or ()) for choice in over_http.choices] == [8, 8, 8]
    assert over_http.usage.completion_tokens == 24


def test_prompt_logprobs_are_the_same(both: Both) -> None:
    ids = prompt_ids(20)
    over_grpc, over_http = both.ask(lambda client: client.generate(ids, prompt_logprobs=1, **FULL))
    first, *_ = both.http.stream(ids, prompt_logprobs=1, **GREEDY)

    assert_same(over_grpc, over_http)
    assert over_http.prompt_logprobs is not None and len(over_http.prompt_logprobs) == 20
    assert over_http.prompt_logprobs[0] is None
    for token_id, entry in zip(ids[1:], over_http.prompt_logprobs[1:], strict=True):
        assert entry is not None and token_id in entry
    assert_same_logprobs(first.prompt_logprobs, over_http.prompt_logprobs)


def test_cached_tokens_are_counted(both: Both) -> None:
    ids = prompt_ids(200, seed=5)
    usages: list[Usage] = [
        client.generate(ids, **GREEDY).usage for client in (both.http, both.grpc, both.http)
    ]

    cached = [usage.cached_tokens for usage in usages]
    assert cached[0] == 0
    assert cached[1] == cached[2] and 0 < (cached[1] or 0) < 200
