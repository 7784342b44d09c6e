"""The engine's bill: parts that are measured one by one meet the wall clock, on real engines."""

import time
from pathlib import Path

import pytest

from factories import Recorder, greedy, make_engine, random_prompts, submit
from octavo.accounts import MAX_TENANTS, OTHER_TENANTS, Account
from octavo.engine import Engine
from octavo.ledger import StepClock


def wait_for(recorders: list[Recorder], timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not all(recorder.finishes for recorder in recorders):
        assert time.monotonic() < end_s, "waited too long"
        time.sleep(0.002)


def account_of(recorder: Recorder) -> Account:
    (account,) = [output.prompt.account for output in recorder.outputs if output.prompt]
    return account


def busy_s(engine: Engine) -> float:
    return sum(engine.stats.busy_s.values())


def run_for_a_while(engine: Engine) -> tuple[float, float]:
    """Requests and pauses. Returns the wall clock between start and end of the loop, taken by its
    thread, and how much of it was certainly idle."""
    loop, wall_s, idle_s = engine._run, 0.0, 0.0

    def timed() -> None:
        nonlocal wall_s
        began_s = time.perf_counter()
        loop()
        wall_s = time.perf_counter() - began_s

    engine._run = timed  # type: ignore[method-assign]
    engine.start()
    for tenant, prompts in (("blue", [30, 9, 60]), ("green", [5, 100]), ("blue", [64, 3, 3, 20])):
        recorders = [
            submit(engine, prompt, greedy(40, tenant=tenant)) for prompt in random_prompts(prompts)
        ]
        wait_for(recorders)
        time.sleep(0.3)
        idle_s += 0.3
    engine.stop()
    return wall_s, idle_s


@pytest.mark.parametrize("run_ahead", [False, True])
def test_busy_idle_and_overhead_meet_the_wall_clock(toy_folder: Path, run_ahead: bool) -> None:
    engine = make_engine(toy_folder, num_blocks=200, max_num_seqs=3, run_ahead=run_ahead)
    run, computed_s = engine.runner.run, 0.0

    def timed(plan: object) -> object:  # measured from outside
        nonlocal computed_s
        began_s = time.perf_counter()
        result = run(plan)  # type: ignore[arg-type]
        computed_s += time.perf_counter() - began_s
        return result

    if not run_ahead:
        engine.runner.run = timed  # type: ignore[method-assign, assignment]
    wall_s, slept_s = run_for_a_while(engine)
    parts = {
        "busy": busy_s(engine),
        "idle": engine.clock.idle_s,
        "overhead": engine.clock.overhead_s,
    }
    assert sum(parts.values()) == pytest.approx(wall_s, rel=1e-3), parts
    # Each part is what it is called.
    assert min(parts.values()) > 0
    assert slept_s - 0.01 < parts["idle"] < slept_s + 0.1 * wall_s
    if not run_ahead:
        assert computed_s <= parts["busy"] < computed_s + 0.3 * (wall_s - slept_s)
    # And the busy part is somebody's.
    tenants = engine.ledger.tenants
    assert sum(s.busy_s for s in tenants.values()) == pytest.approx(parts["busy"], rel=1e-9)
    assert {*tenants} == {"blue", "green"}


def test_idle_time_is_counted_while_it_lasts(toy_folder: Path) -> None:
    engine = make_engine(toy_folder)
    engine.start()
    readings = []
    for _ in range(3):
        time.sleep(0.05)
        engine.count_idle()
        readings.append(engine.clock.idle_s)
    began_s = time.perf_counter()
    engine.stop()
    assert readings[0] < readings[1] - 0.04 < readings[2] - 0.08
    assert engine.clock.idle_s - readings[2] <= time.perf_counter() - began_s + 0.01


def test_a_caller_who_steps_owns_the_time_between(toy_folder: Path) -> None:
    engine = make_engine(toy_folder)
    recorder = submit(engine, [5, 6, 7], greedy(4))
    while engine.step():
        time.sleep(0.02)
    assert recorder.finishes and busy_s(engine) > 0
    assert engine.clock.idle_s == 0 and engine.clock.overhead_s < 0.02


def test_accounts_of_requests_sum_to_the_steps(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=40, max_num_seqs=4, max_num_batched_tokens=16)
    recorders = [
        submit(engine, prompt, greedy(30, n=n))
        for prompt, n in zip(random_prompts([40, 9, 25, 60]), (1, 2, 1, 1), strict=True)
    ]
    while engine.step():
        pass
    assert engine.scheduler.counters.preemptions, "none was computed twice"
    accounts = [account_of(recorder) for recorder in recorders]
    assert all(a.prefill_s > 0 and a.decode_s > 0 for a in accounts)
    assert sum(a.busy_s for a in accounts) == pytest.approx(busy_s(engine), rel=1e-9)
    assert engine.ledger.tenants[""].busy_s == pytest.approx(busy_s(engine), rel=1e-9)


def test_phases_are_those_of_the_rows(toy_folder: Path) -> None:
    """In steps of one kind the phases are the steps' own; a mixed step is shared."""
    engine = make_engine(toy_folder)
    recorder = submit(engine, random_prompts([20])[0], greedy(10))
    while engine.step():
        pass
    account, busy = account_of(recorder), engine.stats.busy_s
    assert account.prefill_s == pytest.approx(busy["prefill"])
    assert account.decode_s == pytest.approx(busy["decode"])
    assert busy["mixed"] == 0


def test_a_longer_context_costs_more(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, max_num_seqs=2)
    short, long = (submit(engine, prompt, greedy(20)) for prompt in random_prompts([4, 220]))
    while engine.step():
        pass
    assert account_of(long).decode_s > account_of(short).decode_s
    assert account_of(long).prefill_s > account_of(short).prefill_s


def test_cached_tokens_save_what_prefill_takes_less_what_keeping_takes(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=100)
    prompt = random_prompts([81])[0]
    first = submit(engine, prompt, greedy(2, tenant="blue"))
    while engine.step():
        pass
    kept_from_s = time.monotonic()
    time.sleep(0.2)
    rate_s = engine.scheduler.costs.recompute_s(1)
    again = submit(engine, prompt, greedy(2, tenant="blue"))
    engine.step()
    kept_s = time.monotonic() - kept_from_s
    other = submit(engine, prompt, greedy(2, tenant="green"))
    while engine.step():
        pass
    assert account_of(first).saved_s == account_of(first).held_s == 0
    assert account_of(other).saved_s == account_of(other).cached_tokens == 0
    account = account_of(again)
    assert account.cached_tokens == 80
    assert account.saved_s == pytest.approx(80 * rate_s)
    # 20 blocks of the pool's 100, beside the weights.
    kv_cache = engine.runner.kv_cache
    memory_bytes = kv_cache.num_bytes + engine.runner.model.num_bytes
    share = 20 * kv_cache.block_bytes / memory_bytes
    assert 0.2 * share <= account.held_s <= kept_s * share
    blue = engine.ledger.tenants["blue"]
    assert (blue.saved_s, blue.held_s) == (account.saved_s, account.held_s)


def test_blocks_that_nobody_found_again_were_held_in_vain(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, num_blocks=12)
    for prompt in random_prompts([40, 40, 40]):
        submit(engine, prompt, greedy(1))
        while engine.step():
            pass
        time.sleep(0.05)
    assert engine.scheduler.allocator.evictions
    assert engine.held_in_vain_s > 0
    assert engine.ledger.tenants[""].held_s == 0


def test_tenants_are_bounded(toy_folder: Path) -> None:
    engine = make_engine(toy_folder, max_num_seqs=64)
    for number in range(MAX_TENANTS + 5):
        submit(engine, [5, 6], greedy(2, tenant=f"t{number}"))
    while engine.step():
        pass
    tenants = engine.ledger.tenants
    assert len(tenants) == MAX_TENANTS + 1 and tenants[OTHER_TENANTS].busy_s > 0
    assert sum(s.busy_s for s in tenants.values()) == pytest.approx(busy_s(engine), rel=1e-9)


def test_the_clock_has_no_gaps() -> None:
    clock = StepClock()
    clock.start()
    began_s = time.perf_counter()
    stepped_s = 0.0
    for _ in range(50):
        clock.begin_step(time.perf_counter())
        time.sleep(0.001)
        stepped_s += clock.end_step()
        clock.begin_idle()
        time.sleep(0.001)
        clock.pass_idle()
        clock.end_idle()
    clock.stop()
    wall_s = time.perf_counter() - began_s
    assert stepped_s + clock.idle_s + clock.overhead_s == pytest.approx(wall_s, abs=1e-4)
    assert stepped_s > 0.05 and clock.idle_s > 0.05 and clock.overhead_s < 0.05


def test_a_step_that_began_before_the_last_one_ended_counts_from_there() -> None:
    clock = StepClock()
    first_s = time.perf_counter()
    clock.begin_step(first_s)
    second_s = time.perf_counter()  # planned while the first is computed
    time.sleep(0.02)
    first = clock.end_step()
    clock.begin_step(second_s)
    time.sleep(0.02)
    second = clock.end_step()
    assert first + second == pytest.approx(time.perf_counter() - first_s, abs=2e-3)
    assert 0.02 <= second < 0.035
