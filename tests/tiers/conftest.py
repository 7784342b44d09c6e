from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiers.harness import RedisProcess, redis_server


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisProcess) -> RedisProcess:
    """An empty one that runs, and stays as it is."""
    with shared_server.client() as client:
        client.flushall()
    return shared_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisProcess]:
    """To be killed and restarted."""
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_server(folder) as server:
        yield server
