"""`octavo top`: what it makes of metrics, on made-up ones; on a real server under load."""

from __future__ import annotations

import http.server
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from octavo.cli.scrape import Interval, Scrape, ScrapeError, scrape
from octavo.cli.top import metrics_address
from octavo.cli.top_frame import load_of
from tests.e2e.target import Target, prompt_ids, serving

HEED_INTERRUPT = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
RUN = [sys.executable, "-c", f"{HEED_INTERRUPT}; from octavo.cli.app import main; main()", "top"]

BEFORE = """\
# HELP octavo_generation_tokens_total Output tokens
octavo_generation_tokens_total{model="llm",version="1"} 100
octavo_attributed_seconds_total{model="llm",tenant="blue",phase="decode"} 1
octavo_time_to_first_token_seconds_bucket{le="0.1",model="llm"} 5
octavo_time_to_first_token_seconds_bucket{le="1",model="llm"} 5
octavo_time_to_first_token_seconds_bucket{le="+Inf",model="llm"} 5
octavo_engine_up{model="llm",version="1"} 1
"""
AFTER = """\
octavo_generation_tokens_total{model="llm",version="1"} 140
octavo_attributed_seconds_total{model="llm",tenant="blue",phase="decode"} 1.5
octavo_attributed_seconds_total{model="llm",tenant="green",phase="prefill"} 0.25
octavo_time_to_first_token_seconds_bucket{le="0.1",model="llm"} 5
octavo_time_to_first_token_seconds_bucket{le="1",model="llm"} 7
octavo_time_to_first_token_seconds_bucket{le="+Inf",model="llm"} 8
octavo_engine_up{model="llm",version="1"} 1
"""


def interval(before: str = BEFORE, after: str = AFTER) -> Interval:
    return Interval(Scrape.parse(before, 10.0), Scrape.parse(after, 12.0))


def test_counters_become_rates_and_increases() -> None:
    found = interval()
    assert found.rate("octavo_generation_tokens_total") == 20
    assert found.increase("octavo_attributed_seconds_total") == 0.75
    assert found.increase("octavo_attributed_seconds_total", tenant="green") == 0.25
    assert found.increase("octavo_preemptions_total") == 0
    assert found.after.names("octavo_attributed_seconds_total", "tenant") == {"blue", "green"}


def test_a_counter_that_began_anew_counts_from_zero() -> None:
    assert interval(AFTER, BEFORE).rate("octavo_generation_tokens_total") == 50


def test_buckets_are_those_of_the_interval() -> None:
    buckets = interval().buckets("octavo_time_to_first_token_seconds")
    assert buckets == [(0.1, 0.0), (1.0, 2.0), (float("inf"), 3.0)]


def test_what_is_not_there_counts_nothing() -> None:
    load = load_of(interval())
    assert load.is_up and load.running == load.waiting == load.busy_s == 0


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://host:8002", "http://host:8002/metrics"),
        ("http://host:8002/", "http://host:8002/metrics"),
        ("https://host/prefix/metrics", "https://host/prefix/metrics"),
        ("host:8002", None),
        ("ftp://host:8002", None),
        ("http://", None),
        ("http://host:port", None),
        ("http://host:99999", None),
        ("", None),
    ],
)
def test_metrics_address(url: str, address: str | None) -> None:
    assert metrics_address(url) == address


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *arguments], capture_output=True, text=True, timeout=60)


def test_a_server_that_is_not_there_is_one_line_and_exit_code_1() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        done = run("--url", f"http://127.0.0.1:{port}", "--once")
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(
        rf"octavo: http://127\.0\.0\.1:{port}/metrics: no answer \(.*refused\)\n", done.stderr
    )


@pytest.mark.parametrize(
    ("page", "said"), [(b"up 1\n", "no octavo metrics"), (b"Hello world\n", "are no metrics")]
)
def test_a_server_of_something_else_is_told_apart(page: bytes, said: str) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(ScrapeError, match=said):
            scrape(f"http://127.0.0.1:{server.server_port}/metrics")
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--url", "nowhere"], "--url = nowhere: http://host:port"),
        (["--url", "http://[::1:8002"], "--url = http://[::1:8002: http://host:port"),
        (["--interval", "0"], "interval"),
        (["--interval", "inf"], "interval"),
        (["--interval", "x"], "interval"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], part: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and part in done.stderr


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Under load, with memory for one request at a time and more that wait."""
    stopping = threading.Event()

    def work(target: Target, seed: int) -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            ids = prompt_ids(150, seed=1000 * seed + number)
            target.generate(ids, max_tokens=100, tenant=f"team-{seed % 2}")

    with serving(
        tmp_path_factory.mktemp("top"), "vllm", kv_cache_bytes="2MiB", max_num_seqs=4,
        price_usd_per_hour=3.2,
    ) as target:  # fmt: skip
        threads = [threading.Thread(target=work, args=(target, seed)) for seed in range(5)]
        for thread in threads:
            thread.start()
        try:
            yield target
        finally:
            stopping.set()
            for thread in threads:
                thread.join(60)


@pytest.mark.e2e
def test_one_frame_of_a_server_under_load(loaded: Target) -> None:
    url = loaded.settings.metrics_url
    done = run("--url", url, "--once", "--interval", "6")
    assert done.returncode == 0, done.stderr
    frame = re.sub(r"\s*│\n│\s{13,}", " ", done.stdout)  # lines that were broken
    lines = dict(re.findall(r"│ (\S+(?: \S+)?) {2,}(.*?)\s*│", frame))
    assert {"tokens/s", "requests", "TTFT", "TPOT", "KV memory", "cost", "limit"} <= set(lines)
    numbers = re.findall(r"(\d[\d,]*) ", lines["tokens/s"])
    output, _, prompts = (int(number.replace(",", "")) for number in numbers)
    assert output > 0 and prompts > 0
    assert re.fullmatch(r"p50 [\d.,]+ m?s, p99 [\d.,]+ m?s \([\d,]+ requests\)", lines["TPOT"])
    assert "of 4 running" in lines["requests"]
    assert re.search(r"\$3.2 per hour", lines["cost"])
    assert re.search(r"team-[01] \d+ %, team-[01] \d+ %", lines["tenants"])
    # Which one depends on the moment of the second look; tests/planner/test_live.py has the rules.
    assert re.match(r"KV memory \(|memory bandwidth, for |compute, for |places \(", lines["limit"])


@pytest.mark.e2e
def test_it_runs_in_a_terminal_until_ctrl_c(loaded: Target) -> None:
    main, terminal = pty.openpty()
    command = [*RUN, "--url", loaded.settings.metrics_url, "--interval", "1"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        os.close(terminal)
        shown, deadline_s = b"", time.monotonic() + 30
        while shown.count(b"tokens/s") < 2:
            assert time.monotonic() < deadline_s, shown[-2000:]
            if select.select([main], [], [], 0.5)[0]:
                shown += os.read(main, 65536)
        process.send_signal(signal.SIGINT)
        while process.poll() is None and time.monotonic() < deadline_s:
            if select.select([main], [], [], 0.2)[0]:
                try:
                    shown += os.read(main, 65536)
                except OSError:  # the other end is closed
                    break
        assert process.wait(10) == 0
    os.close(main)
    assert b"Traceback" not in shown
    assert b"\x1b[?1049l" in shown, "the screen is as it was"


def test_help_teaches_with_an_example() -> None:
    done = run("--help")
    assert done.returncode == 0 and "octavo top --url" in done.stdout.replace("\n", " ")
