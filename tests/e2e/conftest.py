"""Servers that several files share. All tests here need the real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.target import Target, serving


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with serving(tmp_path_factory.mktemp("flat"), "vllm") as target:
        yield target


@pytest.fixture(scope="session")
def batched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with serving(tmp_path_factory.mktemp("batched"), "batched") as target:
        yield target


@pytest.fixture(params=["flat", "batched"])
def target(request: pytest.FixtureRequest) -> Target:
    """Both forms, one after the other."""
    chosen: Target = request.getfixturevalue(request.param)
    return chosen
