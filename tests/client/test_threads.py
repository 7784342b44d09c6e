"""One client, many threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from octavo_client import Client
from tests.client.scripted_server import Received, ScriptedServer

THREADS = 32


def test_threads_share_a_client_and_stream_at_once(client: Client, server: ScriptedServer) -> None:
    all_open = threading.Barrier(THREADS)

    def script(call: Received) -> Iterator[Any]:
        prompt = call.inputs["text_input"]
        yield call.reply(f"{prompt}:")
        all_open.wait(10)
        for i in range(20):
            yield call.reply(f"{prompt}.{i} ")
        yield call.reply("end", "stop")

    server.script = script

    def ask(i: int) -> str:
        return "".join(chunk.text for chunk in client.stream(f"p{i}"))

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(ask, range(THREADS)))

    for i, answer in enumerate(answers):
        assert answer == f"p{i}:" + "".join(f"p{i}.{j} " for j in range(20)) + "end"
