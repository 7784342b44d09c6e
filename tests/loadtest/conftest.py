"""A scripted server that the quick runs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.loadtest.scripted_triton import Addresses, scripted_triton


@pytest.fixture(scope="session")
def triton() -> Iterator[Addresses]:
    with scripted_triton(ttft_s=0.05, gap_s=0.02) as addresses:
        yield addresses
