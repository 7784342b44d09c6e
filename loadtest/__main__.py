"""`make loadtest`: a server of our own, or one that runs already, under load for a minute.

python -m loadtest [--url URL] [--users N] [...] [options of locust and of loadtest]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from loadtest.folders import new_folder
from octavo.cli import probes
from octavo.cli.embedded_server import EmbeddedServer, ServerStartError
from octavo.cli.ports import Ports
from octavo.cli.server_settings import ServerSettings
from octavo.cli.terminal import foreground_group

HERE = Path(__file__).parent
ROOT = HERE.parent
_DEFAULT_MODEL = ROOT / "models" / "octavo-tiny"


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and those that are Locust's."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description="Load a server for a while and report. Options that are not listed here go to "
        "Locust: see `locust -f loadtest/locustfile.py --help`.",
    )
    parser.add_argument("--url", help="HTTP address of a running server; without it one is started")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=_DEFAULT_MODEL,
        help="checkpoint folder to serve, and whose limits hold (default: octavo-tiny)",
    )
    parser.add_argument(
        "--users", type=int, help="closed loop of so many users, instead of an open loop"
    )
    parser.add_argument("--arrival", default="poisson", help="of the open loop (default: poisson)")
    parser.add_argument("--rate", type=float, default=1.0, help="of the open loop (default: 1)")
    parser.add_argument("--run-time", default="60s", help="as Locust's (default: 60s)")
    parser.add_argument("--workload", default="chat", help="what is asked (default: chat)")
    parser.add_argument(
        "--output", default="", help="folder of the run (default: a new one in loadtest-results)"
    )
    return parser.parse_known_args(arguments)


def locust_command(
    args: argparse.Namespace,
    rest: Sequence[str],
    folder: Path,
    host: str,
    grpc_address: str | None = None,
) -> list[str]:
    config = json.loads((args.checkpoint / "config.json").read_text("utf-8"))
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py")]
    command += ["--headless", "--only-summary", "--host", host, "--run-time", args.run_time]
    # Given a file, Locust keeps its own rounded statistics there instead of printing them.
    command += ["--output", str(folder), "--json-file", str(folder / "locust")]
    command += ["--workload", args.workload]
    command += ["--max-model-len", str(config["max_position_embeddings"])]
    command += ["--vocab-size", str(config["vocab_size"])]
    if grpc_address is not None:
        command += ["--grpc-address", grpc_address]
    if args.users is not None:
        command += ["--arrival", "closed", "--users", str(args.users)]
        command += ["--spawn-rate", str(args.users)]
    else:
        command += ["--arrival", args.arrival, "--rate", str(args.rate)]
    return [*command, *rest]


def run_locust(command: Sequence[str]) -> int:
    """Its exit code. After Ctrl-C Locust reports what it has; a second one kills it."""
    # In a group of its own, so that a terminal's Ctrl-C reaches it through us alone, and as
    # SIGTERM: Locust ends in the same way then, but without gevent's traceback.
    process = subprocess.Popen(command, start_new_session=True)
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(sent)
    return process.wait()


def start_server(checkpoint: Path) -> EmbeddedServer:
    settings = ServerSettings(
        repository=ROOT / "model_repository",
        model=checkpoint,
        ports=Ports.free(),
        engine_overrides={"quality_gate": "off"},
    )
    server = EmbeddedServer(settings)
    say(f"starting a server of {checkpoint.name}, log in {server.log_file}")
    server.start()
    say(f"serving on {settings.http_url} and gRPC {settings.grpc_url}")
    quality = probes.quality(settings.metrics_url)
    if quality is not None:
        say(quality)
    return server


def say(text: str) -> None:
    print(f"loadtest: {text}", file=sys.stderr, flush=True)


def point_to(report: Path) -> None:
    if report.exists():
        say(f"the report is {report}")


def interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    args, rest = parse(arguments)
    with foreground_group(), ExitStack() as stack:
        # SIGINT too: a shell that starts a job with & leaves it ignored.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, interrupt)
        folder = new_folder(args.output, args.workload)
        stack.callback(point_to, folder / "report.html")
        if args.url:
            return run_locust(locust_command(args, rest, folder, args.url))
        try:
            server = start_server(args.checkpoint.resolve())
        except ServerStartError as error:
            say(str(error))
            return 1
        except KeyboardInterrupt:
            say("stopped before the server was ready")
            return 130
        stack.callback(server.kill)
        settings = server.settings
        return run_locust(locust_command(args, rest, folder, settings.http_url, settings.grpc_url))


if __name__ == "__main__":
    os.chdir(ROOT)
    raise SystemExit(main(sys.argv[1:]))
