"""One real server for each form of the model, shared by all contract tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.cli.embedded_server import EmbeddedServer
from octavo.cli.paths import default_model, default_repository
from octavo.cli.ports import Ports
from octavo.cli.server_settings import Contract, ServerSettings
from tests.contract.calls import Server


def _start(contract: Contract, log_file: Path) -> Iterator[Server]:
    settings = ServerSettings(
        repository=default_repository(),
        model=default_model(),
        contract=contract,
        ports=Ports.free(),
        log_file=log_file,
        # In float32 the same request has the same text whatever runs beside it. With the reference
        # operators a sender keeps up with the steps: a response for each token of a lone stream.
        engine_overrides={"max_num_seqs": "8", "dtype": "float32", "kernels": "reference"},
    )
    with EmbeddedServer(settings):
        yield Server(settings)


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """vllm_backend's form: shapes [1]."""
    yield from _start("vllm", tmp_path_factory.mktemp("flat") / "server.log")


@pytest.fixture(scope="session")
def batched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The default form: shapes [1, 1]."""
    yield from _start("batched", tmp_path_factory.mktemp("batched") / "server.log")


@pytest.fixture(params=["flat", "batched"])
def server(request: pytest.FixtureRequest) -> Server:
    """Both forms, one after the other."""
    server: Server = request.getfixturevalue(request.param)
    return server
