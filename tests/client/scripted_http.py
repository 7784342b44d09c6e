"""A scripted server that speaks Triton's HTTP: health, metadata, generate_stream.

What it sends is what Triton 24.10 was seen to send: sorted keys, tensors of one element without
their list, no event for a final flag alone, the status of the first response for the whole.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.client.scripted_server import Columns, Received, ScriptedServer

_MODEL = re.compile(r"/v2/models/([^/]*)(?:/versions/([^/]*))?(?:/([a-z_]+))?")


@dataclass(frozen=True)
class Message:
    """`body` as an event, or as the whole answer; None sends nothing."""

    body: Any
    status: int = 200
    is_event: bool = True

    @property
    def event(self) -> bytes:
        return f"data: {json.dumps(self.body, sort_keys=True)}\n\n".encode()


@dataclass
class HttpReceived(Received):
    """One POST to generate_stream."""

    body: dict[str, Any]

    @property
    def inputs(self) -> dict[str, Any]:
        return {name: value for name, value in self.body.items() if name != "id"}

    @property
    def wanted(self) -> set[str]:
        flags = {name for name, value in self.body.items() if value is True}
        return {"text_output", *(f.removeprefix("return_") for f in flags if f[:7] == "return_")}

    def response(self, columns: Columns, final: bool) -> Message:
        tensors = {
            name: elements[0] if len(elements) == 1 else elements
            for name, (_, elements) in columns.items()
        }
        return Message({"model_name": "llm", "model_version": "1", **tensors})

    def flag_only(self) -> Message:
        return Message(None)

    def error(self, text: str, status: int = 500) -> Message:
        return Message({"error": text}, status)

    def front_end_error(self, text: str, status: int = 400) -> Message:
        return Message({"error": f"[request id: <id_unknown>] {text}"}, status, is_event=False)


class ScriptedHttpServer(ScriptedServer):
    """See `ScriptedServer`. `num_connections` counts those that clients have opened."""

    def __init__(self, *, batched: bool = True, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(batched=batched)
        self.num_connections = 0
        self.paths: list[str] = []
        self.connections: set[socket.socket] = set()
        self._listener = _Listener(("127.0.0.1", 0), _Handler)
        self._listener.scripted = self
        if tls:
            self._listener.socket = tls.wrap_socket(self._listener.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._listener.server_port}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()
        for connection in tuple(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Listener(ThreadingHTTPServer):
    scripted: ScriptedHttpServer
    request_queue_size = 512
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def setup(self) -> None:
        super().setup()
        self.server.scripted.num_connections += 1
        self.server.scripted.connections.add(self.connection)

    def finish(self) -> None:
        self.server.scripted.connections.discard(self.connection)
        super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        scripted = self.server.scripted
        scripted.paths.append(self.path)
        name, _, action = _parts(self.path)
        if self.path in ("/v2/health/live", "/v2/health/ready"):
            self._answer(200, b"")
        elif action == "ready":
            self._answer(200 if scripted.model_ready and name == "llm" else 400, b"")
        elif name == "llm" and not action:
            scripted.metadata_queries += 1
            inputs = [
                {"name": name, "datatype": datatype, "shape": shape}
                for name, (datatype, shape) in scripted.input_shapes.items()
            ]
            self._answer_json(200, {"name": "llm", "versions": ["1"], "inputs": inputs})
        else:
            self._answer_json(404, {"error": f"Request for unknown model: '{name}' is not found"})

    def do_POST(self) -> None:
        scripted = self.server.scripted
        scripted.paths.append(self.path)
        _, version, action = _parts(self.path)
        assert action == "generate_stream"
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = HttpReceived(headers, body.get("id", ""), version, body)
        watch = threading.Thread(target=self._watch, args=(call,))
        watch.start()
        try:
            self._send(scripted.run(call))
        except OSError:
            self.close_connection = True
        finally:
            call.ended.set()
            watch.join()

    def _send(self, messages: Iterator[Message | bytes]) -> None:
        """Messages, and bytes as they are."""
        begun = False
        for message in messages:
            if isinstance(message, Message) and not message.is_event:
                return self._answer_json(message.status, message.body)
            if isinstance(message, Message) and message.body is None:
                continue
            if not begun:
                self.send_response(message.status if isinstance(message, Message) else 200)
                self.send_header("content-type", "text/event-stream; charset=utf-8")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                begun = True
            self._chunk(message if isinstance(message, bytes) else message.event)
        return self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _answer_json(self, status: int, body: Any) -> None:
        self._answer(status, json.dumps(body).encode(), "application/json")

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _watch(self, call: HttpReceived) -> None:
        """See the client leave."""
        while not call.ended.is_set():
            if select.select([self.connection], [], [], 0.01)[0]:
                with contextlib.suppress(OSError):
                    # Past TLS, if there is any: all that matters is whether the end has come.
                    if socket.socket.recv(self.connection, 1, socket.MSG_PEEK):
                        continue
                call.ended.set()


def _parts(path: str) -> tuple[str, str, str]:
    """Model, version and what is wanted of it."""
    found = _MODEL.fullmatch(path)
    return tuple(part or "" for part in found.groups()) if found else ("", "", "")  # type: ignore[return-value]
