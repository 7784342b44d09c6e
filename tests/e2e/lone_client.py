"""A client process that can be killed: `python -m tests.e2e.lone_client URL` with a serialized
request on its input. It prints a line when the request is under way and when text has come."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonclient.grpc import service_pb2

from tests.e2e.streams import Stream


class LoneClient:
    """The other process, seen from the test."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def send(self, request: service_pb2.ModelInferRequest) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(request.SerializeToString())
        self._process.stdin.close()
        self._expect(b"sent\n")

    def wait_for_first(self) -> None:
        self._expect(b"first\n")

    def kill(self) -> float:
        """Ends it as the kernel would; returns when."""
        now_s = time.monotonic()
        self._process.kill()
        return now_s

    def _expect(self, line: bytes) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == line


@contextmanager
def lone_client(url: str) -> Iterator[LoneClient]:
    """Starts the process; it has loaded all it needs when this returns."""
    command = [sys.executable, "-m", "tests.e2e.lone_client", url]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        client = LoneClient(process)
        try:
            client._expect(b"ready\n")
            yield client
        finally:
            process.kill()


def main() -> None:
    print("ready", flush=True)
    request = service_pb2.ModelInferRequest.FromString(sys.stdin.buffer.read())
    stream = Stream(sys.argv[1], request)
    print("sent", flush=True)
    stream.wait_for_first()
    print("first", flush=True)
    stream.wait()


if __name__ == "__main__":
    main()
