"""Blocks from another engine = own ones; and a server that dies costs time only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from equivalences import Case, pool_blocks
from factories import generate_checked, run_to_end, step_checked, submit
from octavo.engine import Engine
from tests.tiers.harness import RedisProcess, redis_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    with redis_server(tmp_path) as server:
        yield server


def sharing(case: Case, server: RedisProcess, **settings: Any) -> Engine:
    tiers = {"redis_url": server.url, "redis_bytes": 2**28, "redis_timeout_s": 5}
    return case.engine(kv_tiers=tiers, **settings)


def test_replicas_find_each_others_prompts(exact_case: Case, server: RedisProcess) -> None:
    case = exact_case
    first, second = sharing(case, server), sharing(case, server)
    case.assert_as_alone(generate_checked(first, case.prompts, case.params))
    assert first.scheduler.counters.prefix_hit_tokens.total() == 0
    step_checked(first)
    assert first.tiers is not None and first.tiers.flush(30)
    case.assert_as_alone(generate_checked(second, case.prompts, case.params))
    hits = second.scheduler.counters.prefix_hit_tokens
    assert hits["redis"] == sum((len(prompt) - 1) // 4 * 4 for prompt in case.prompts) > 0
    first.stop()
    second.stop()


def test_a_server_that_dies_and_comes_back_costs_time_only(
    exact_case: Case, server: RedisProcess
) -> None:
    case = exact_case
    engine = sharing(case, server, num_blocks=pool_blocks(case, 0.2), preemption="swap")
    generate_checked(engine, case.prompts, case.params)
    assert engine.scheduler.counters.loaded_blocks > 0, "it is in use"
    assert engine.tiers is not None
    recorders = [submit(engine, prompt, case.params) for prompt in case.prompts]
    for step in range(12):
        step_checked(engine)
        if step == 6:
            server.kill()
    run_to_end(engine)
    case.assert_as_alone(recorders)
    errors = engine.tiers.stats["redis"].errors.total()
    assert errors > 0 and not engine.tiers.gauges()["redis"].is_up
    server.start()
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    engine.stop()
