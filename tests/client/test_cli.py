"""The command line, in process; in a process and a terminal of its own where Ctrl-C matters."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from octavo_client.cli import app
from tests.client.scripted_server import RECEIPT, Received, ScriptedServer
from tests.client.test_cancellation import talk_for_ever

# A shell that starts a job in the background leaves SIGINT ignored, in all its descendants.
HEED_INTERRUPT = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
RUN = [sys.executable, "-c", f"{HEED_INTERRUPT}; from octavo_client.cli import main; main()"]


def run(*arguments: str, stdin: str = "") -> Any:
    return CliRunner().invoke(app, arguments, input=stdin)


def echo(call: Received) -> Iterator[Any]:
    """Answers with the number of messages and the last of them."""
    messages = json.loads(call.inputs["messages"])
    yield call.reply(f"{len(messages)}:")
    yield call.reply(messages[-1]["content"], "stop")


def test_complete_prints_the_text_and_a_summary(server: ScriptedServer) -> None:
    done = run("complete", "Say hello", "--url", server.url)

    assert done.exit_code == 0
    assert done.stdout == "Hello, world\n"
    assert re.fullmatch(
        r"3 prompt \+ 3 completion tokens, stop, TTFT \d+\.\d{3} s, [\d.]+ tok/s\n", done.stderr
    )
    assert server.last.inputs["text_input"] == "Say hello"
    assert server.last.inputs["stream"] is True
    assert server.last.sampling == {"max_tokens": 128}


def test_complete_passes_its_options_on(server: ScriptedServer) -> None:
    done = run(
        "complete", "Say hello", "--url", server.url, "--max-tokens", "9", "--temperature", "0",
        "--top-p", "0.5", "--top-k", "3", "--seed", "7", "--stop", "\n", "--stop", "END",
        "--timeout", "60",
    )  # fmt: skip

    assert done.exit_code == 0
    sampling = server.last.sampling
    assert sampling.pop("deadline_ms") > 50_000
    assert sampling == {
        "max_tokens": 9, "temperature": 0.0, "top_p": 0.5, "top_k": 3, "seed": 7,
        "stop": ["\n", "END"],
    }  # fmt: skip


def test_complete_reads_a_piped_prompt(server: ScriptedServer) -> None:
    done = run("complete", "--url", server.url, stdin="Say hello\n")

    assert done.stdout == "Hello, world\n"
    assert server.last.inputs["text_input"] == "Say hello\n"


def test_complete_as_json(server: ScriptedServer) -> None:
    done = run("complete", "Say hello", "--url", server.url, "--json")

    answer = json.loads(done.stdout)
    assert 0 < answer.pop("ttft_s") <= answer.pop("total_s")
    assert answer == {
        "text": "Hello, world",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": None},
        "cost": None,
    }


@pytest.mark.parametrize(
    ("price", "line"),
    [
        (
            {},
            r"cost \$0.0002 \(prefill \$0.00015, decode \$5e-05\); 2 cached tokens saved \$0.0001, "
            r"kept for \$1e-05; queued 0.250 s; \$3.2 per hour as of 2026-11-20",
        ),
        (
            {"price_as_of": None, "price_usd_per_hour": None, "usd": None, "prefill_usd": None,
             "decode_usd": None, "saved_usd": None, "held_usd": None},
            r"cost 0.2000 s \(prefill 0.1500 s, decode 0.0500 s\); 2 cached tokens saved 0.1000 s, "
            r"kept for 0.0100 s; queued 0.250 s; no price is set on the server: .*",
        ),
    ],
)  # fmt: skip
def test_complete_prints_the_receipt_on_demand(
    server: ScriptedServer, price: dict[str, Any], line: str
) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("Hi", "stop", cost={**RECEIPT, **price})

    server.script = script
    done = run("complete", "Say hello", "--url", server.url, "--cost", "--tenant", "blue")

    assert done.exit_code == 0
    assert re.fullmatch(line, done.stderr.splitlines()[1]), done.stderr
    assert server.last.sampling["tenant"] == "blue"
    assert "return_cost" in server.last.inputs


def test_chat_prints_the_receipt_of_each_answer(server: ScriptedServer) -> None:
    done = run("chat", "--url", server.url, "--cost", stdin="one\ntwo\n")

    assert len(re.findall("^cost ", done.stderr, re.MULTILINE)) == 2


def test_failure_is_one_line_and_exit_code_1(server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.reply("Hel")
        yield call.error("the engine has failed:\nout of memory")

    server.script = script

    done = run("complete", "Say hello", "--url", server.url)

    assert done.exit_code == 1
    assert done.stdout == "Hel\n"
    assert done.stderr == f"error: {server.url}: the engine has failed: out of memory\n"


def test_missing_server_is_one_line_and_exit_code_1(dead_url: str) -> None:
    done = run("complete", "Say hello", "--url", dead_url)

    assert done.exit_code == 1
    assert re.fullmatch(rf"error: {dead_url}: .*connect.*\n", done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["complete", "hi", "--max-tokens", "0"],
        ["complete", "hi", "--timeout", "0"],
        ["complete", "hi", "--url", "ftp://localhost:8000"],
        ["complete", "hi", "--no-such-option"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_interrupt_cancels_the_generation_and_is_exit_code_130(server: ScriptedServer) -> None:
    server.script = talk_for_ever
    with subprocess.Popen(
        [*RUN, "complete", "Go on", "--url", server.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.read(2) == "ab"

        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=10)

    assert process.returncode == 130
    assert (rest, errors) == ("\n", "")
    assert server.last.ended.wait(5) and not server.last.completed


def test_chat_in_a_pipe_keeps_the_history_until_reset(server: ScriptedServer) -> None:
    server.script = echo

    done = run(
        "chat", "--url", server.url, "--system", "Be kind",
        stdin="one\n\ntwo\n/reset\nthree\n/exit\nfour\n",
    )  # fmt: skip

    assert done.exit_code == 0
    assert done.stdout == "2:one\n4:two\n2:three\n"
    assert json.loads(server.received[1].inputs["messages"]) == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "2:one"},
        {"role": "user", "content": "two"},
    ]


def test_chat_in_a_pipe_ends_at_the_first_failure(server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        yield call.error("temperature: got 900; must be at most 100")

    server.script = script

    done = run("chat", "--url", server.url, "--temperature", "900", stdin="one\ntwo\n")

    assert done.exit_code == 1
    assert len(server.received) == 1
    assert "temperature: got 900" in done.stderr


class Terminal:
    """A process that believes it talks to a person."""

    def __init__(self, *arguments: str) -> None:
        self._screen = ""
        self._fd, other_end = pty.openpty()
        # Ctrl-C only reaches a process whose controlling terminal this is.
        code = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {RUN[-1]}"
        self._process = subprocess.Popen(
            [*RUN[:-1], code, *arguments],
            stdin=other_end, stdout=other_end, stderr=other_end, start_new_session=True,
        )  # fmt: skip
        os.close(other_end)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def expect(self, pattern: str) -> None:
        """Wait for the pattern and forget the screen up to its end."""
        give_up = time.monotonic() + 10
        while not (found := re.search(pattern, self._screen)):
            ready = select.select([self._fd], [], [], max(0.0, give_up - time.monotonic()))[0]
            assert ready, f"{pattern!r} is not in {self._screen!r}"
            try:
                self._screen += os.read(self._fd, 4096).decode()
            except OSError:  # nobody has the other end open any more
                code = self._process.wait(10)
                raise AssertionError(f"ended with {code}, and {self._screen!r}") from None
        self._screen = self._screen[found.end() :]

    def exit_code(self) -> int:
        return self._process.wait(10)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)


def test_ctrl_c_in_a_chat_stops_the_answer_and_not_the_chat(server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        return talk_for_ever(call) if "Go on" in call.inputs["messages"] else echo(call)

    server.script = script
    with Terminal("chat", "--url", server.url) as terminal:
        terminal.expect("> ")
        terminal.type("Go on\n")
        terminal.expect("ab")
        terminal.type("\x03")
        terminal.expect(r"\(stopped\)\s+> ")
        assert server.last.ended.wait(5) and not server.last.completed
        terminal.type("hi\n")
        # One message: the turn that was stopped is forgotten.
        terminal.expect(r"1:hi\r?\n.*tok/s\s+> ")
        terminal.type("\x04")

        assert terminal.exit_code() == 0


def test_failure_in_a_terminal_chat_does_not_end_it(server: ScriptedServer) -> None:
    def script(call: Received) -> Iterator[Any]:
        if len(server.received) > 1:
            return echo(call)
        return iter([call.front_end_error("Exceeds maximum queue size")])

    server.script = script
    with Terminal("chat", "--url", server.url) as terminal:
        terminal.expect("> ")
        terminal.type("hi\n")
        terminal.expect(r"error: \S+: Exceeds maximum queue size\s+> ")
        terminal.type("hi\n")
        terminal.expect(r"1:hi")
        terminal.expect("> ")
        terminal.type("/exit\n")

        assert terminal.exit_code() == 0
