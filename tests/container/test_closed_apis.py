"""What the server's command line closes, seen by callers. The server is the embedded one, which
gets these flags from the same function as the container's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from octavo.cli.embedded_server import EmbeddedServer
from octavo.cli.ports import Ports
from octavo.cli.server_settings import ServerSettings
from tests.cli.checkpoints import write_empty_checkpoint

pytestmark = pytest.mark.e2e

# A model without an engine: these calls never reach it.
REPOSITORY = Path(__file__).parents[1] / "cli" / "repository"

Call = Callable[[grpc.InferenceServerClient], object]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerSettings]:
    folder = tmp_path_factory.mktemp("closed")
    settings = ServerSettings(
        repository=REPOSITORY,
        model=write_empty_checkpoint(folder / "model"),
        ports=Ports.free(),
        log_file=folder / "server.log",
    )
    with EmbeddedServer(settings):
        yield settings


def over_http(server: ServerSettings, method: str, path: str) -> httpx.Response:
    content = b"{}" if method == "POST" else None
    with httpx.Client(base_url=server.http_url, trust_env=False) as client:
        return client.request(method, path, content=content)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "v2/systemsharedmemory/status"),
        ("POST", "v2/systemsharedmemory/region/mine/register"),
        ("POST", "v2/cudasharedmemory/region/mine/register"),
        ("POST", "v2/repository/index"),
        ("POST", "v2/repository/models/llm/load"),
        ("POST", "v2/repository/models/llm/unload"),
        ("POST", "v2/trace/setting"),
        ("POST", "v2/logging"),
    ],
)
def test_http_calls_that_serving_does_not_need_are_refused(
    server: ServerSettings, method: str, path: str
) -> None:
    answer = over_http(server, method, path)
    assert answer.status_code == 403
    assert answer.json() == {"error": "This API is restricted, expecting header 'closed'"}


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.register_system_shared_memory("mine", "/key", 64),
        lambda client: client.get_model_repository_index(),
        lambda client: client.load_model("llm"),
        lambda client: client.update_trace_settings("llm", {}),
        lambda client: client.update_log_settings({}),
    ],
    ids=["shared-memory", "index", "load", "trace", "logging"],
)
def test_grpc_calls_that_serving_does_not_need_are_refused(
    server: ServerSettings, call: Call
) -> None:
    with (
        grpc.InferenceServerClient(server.grpc_url) as client,
        pytest.raises(InferenceServerException, match="restricted") as refused,
    ):
        call(client)
    assert refused.value.status() == "StatusCode.UNAVAILABLE"


@pytest.mark.parametrize(
    "path", ["v2", "v2/health/ready", "v2/models/llm", "v2/models/llm/config", "v2/models/stats"]
)
def test_what_clients_ask_stays_open(server: ServerSettings, path: str) -> None:
    assert over_http(server, "GET", path).status_code == 200
