"""`octavo serve`: doctor, start, announce, watch, drain."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from octavo.cli import doctor, kernel_build, probes, server_log
from octavo.cli.arguments import ServeArguments, chosen_ports, server_settings
from octavo.cli.embedded_server import EmbeddedServer, ServerStartError
from octavo.cli.ports import is_loopback
from octavo.cli.server_settings import ServerSettings
from octavo.cli.terminal import foreground_group
from octavo.errors import OctavoError

EXIT_STOPPED, EXIT_NOT_STARTED, EXIT_ENGINE_DIED, EXIT_CUT_OFF = 0, 1, 3, 4

_WATCH_INTERVAL_S = 0.5
_ASK_ENGINE_INTERVAL_S = 2.0
_LOG_TAIL_LINES = 15


class _Console(Console):
    """Speaks as long as anybody listens: a closed terminal must not cut off a drain."""

    def __init__(self, *, stderr: bool) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str, style: str | None = None) -> None:
        with suppress(OSError):
            self.print(text, style=style)

    def on_broken_pipe(self) -> None:
        pass


_out = _Console(stderr=False)
_err = _Console(stderr=True)


def run(arguments: ServeArguments) -> int:
    """The exit code."""
    try:
        if not _passes_doctor(arguments):
            return EXIT_NOT_STARTED
        settings = server_settings(arguments)
    except OctavoError as error:
        _say_error(str(error))
        return EXIT_NOT_STARTED
    if not is_loopback(settings.host):
        _err.say(
            f"octavo: WARNING: listening on {settings.host}. The embedded Triton server is an old "
            "release with known holes: on a network, run the container instead.",
            style="bold yellow",
        )
    with foreground_group():
        _handle_signals()
        return _serve(EmbeddedServer(settings))


def _passes_doctor(arguments: ServeArguments) -> bool:
    results = doctor.examine(chosen_ports(arguments), arguments.host)
    for check in results:
        if check.state != "ok":
            line = f"octavo: {check.state}: {check.name}: {check.detail}"
            fix = f" (fix: {check.fix})" if check.fix else ""
            _err.say(line + fix, style="bold red" if check.state == "fatal" else "yellow")
    return not doctor.has_fatal(results)


def _serve(server: EmbeddedServer) -> int:
    try:
        started_s = time.monotonic()
        _start(server)
        _announce(server, time.monotonic() - started_s)
        reason = _watch(server)
    except ServerStartError as error:
        _say_error(str(error))
        _show_log(server)
        return EXIT_NOT_STARTED
    except OctavoError as error:
        _say_error(str(error))
        return EXIT_NOT_STARTED
    except KeyboardInterrupt:
        return _drain(server)
    else:
        _say_error(f"{reason}; stopping")
        server.kill()
        _show_log(server)
        return EXIT_ENGINE_DIED
    finally:
        server.kill()


def _start(server: EmbeddedServer) -> None:
    settings = server.settings
    name = settings.model.name if settings.model else settings.model_name
    _err.say(f"octavo: serving {name}, log in {server.log_file}")
    kernel_build.build_ahead()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=_err,
        transient=True,
        disable=not _err.is_terminal,
    ) as progress:
        task = progress.add_task("", total=None)

        def on_progress(step: str) -> None:
            progress.update(task, description=step)
            if not _err.is_terminal:
                _err.say(f"octavo: {step}")

        def on_retry(reason: str) -> None:
            _err.say(f"octavo: the start failed: {reason}; trying once more", style="bold yellow")

        server.start(on_progress, on_retry)


def _announce(server: EmbeddedServer, start_s: float) -> None:
    settings = server.settings
    _out.say(f"\nReady: the first token came out after {start_s:.1f} s.", style="bold green")
    _out.say(
        f"  HTTP     {settings.http_url}\n"
        f"  gRPC     {settings.grpc_url}\n"
        f"  metrics  {settings.metrics_url}\n"
        f"  log      {server.log_file}"
    )
    quality = probes.quality(settings.metrics_url)
    if quality is not None:
        _out.say(f"  quality  {quality}")
    _out.say("")
    _out.say("Try it:", style="bold")
    for line in examples(settings):
        _out.say(f"  {line}")
    _out.say("\nCtrl-C drains and stops.")


def examples(settings: ServerSettings) -> tuple[str, str, str]:
    """Three commands to paste into a shell."""
    body = (
        '{"text_input": "The function returns", "stream": true, '
        r'"sampling_parameters": "{\"max_tokens\": 64}"}'
    )
    python = (
        "from octavo_client import Client; "
        f"print(Client({settings.grpc_url!r}).generate('The function returns', max_tokens=64).text)"
    )
    return (
        f"curl -N {settings.generate_stream_url} -d '{body}'",
        f'{sys.prefix}/bin/python -c "{python}"',
        f"curl -s {settings.metrics_url} | grep ^octavo_ | grep -v _bucket",
    )


def _watch(server: EmbeddedServer) -> str:
    """Returns only when the server cannot serve any more, with the reason."""
    next_question_s = 0.0
    while True:
        now_s = time.monotonic()
        ask_engine = now_s >= next_question_s
        if ask_engine:
            next_question_s = now_s + _ASK_ENGINE_INTERVAL_S
        reason = server.failure(ask_engine=ask_engine)
        if reason is not None:
            return reason
        time.sleep(_WATCH_INTERVAL_S)


def _drain(server: EmbeddedServer) -> int:
    if server.pid is None:  # Ctrl-C during the start, which has cleared up already
        _err.say("\noctavo: stopped before the first token")
        return EXIT_STOPPED
    bound_s = server.settings.drain_timeout_s
    _err.say(f"\noctavo: draining, up to {bound_s:g} s (Ctrl-C again stops at once)")
    try:
        clean = server.stop()
    except KeyboardInterrupt:
        server.kill()
        clean = False
    _err.say("octavo: stopped" if clean else "octavo: stopped; some requests were cut off")
    return EXIT_STOPPED if clean else EXIT_CUT_OFF


def _handle_signals() -> None:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a shell that starts a job with & leaves it ignored.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with suppress(ValueError):  # not in the main thread
            signal.signal(each, interrupt)


def _say_error(text: str) -> None:
    _err.say(f"octavo: {text}", style="bold red")


def _show_log(server: EmbeddedServer) -> None:
    width = max(80, _err.width)
    for line in server_log.tail(server.log_file, _LOG_TAIL_LINES):
        _err.say(f"  | {line[: width - 4]}", style="dim")
    _err.say(f"octavo: the whole log: {os.fspath(server.log_file)}")
