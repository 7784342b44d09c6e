"""health() tells, and does not raise."""

from __future__ import annotations

from octavo_client import Client, Health
from tests.client.scripted_server import ScriptedServer


def test_healthy_server(client: Client) -> None:
    health = client.health()

    assert health == Health(live=True, ready=True, model_ready=True)
    assert health.ok


def test_model_that_is_not_loaded(client: Client, server: ScriptedServer) -> None:
    server.model_ready = False

    health = client.health()

    assert health == Health(live=True, ready=True, model_ready=False)
    assert not health.ok


def test_no_server(dead_url: str) -> None:
    with Client(dead_url) as client:
        assert client.health(timeout=2) == Health(live=False, ready=False, model_ready=False)
