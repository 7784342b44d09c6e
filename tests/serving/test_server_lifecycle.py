"""Start, back-pressure, drain, and what goes wrong beneath a request."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import triton_python_backend_utils as pb_utils

from octavo.execution.sampler import SampledTokens
from octavo.scheduling.sequence import StepPlan
from tests.serving.harness import GREEDY, Served, StepGate, all_flags, request, wait_until

Serve = Callable[..., Served]

ANSWER = "ABCDEFGHIJKLMNOPQ"
LONG = {**GREEDY, "max_tokens": 200}


def slow_down(served: Served, step_s: float) -> None:
    run = served.engine.runner.run

    def slow(plan: StepPlan) -> SampledTokens:
        time.sleep(step_s)
        return run(plan)

    served.engine.runner.run = slow  # type: ignore[method-assign]


def engine_up() -> float:
    (family,) = [f for f in pb_utils.MetricFamily.created if f.name == "octavo_engine_up"]
    (metric,) = family.metrics.values()
    return float(metric.value())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 0}, "octavo: engine settings: block_size = 0"),
        ({"blocks": 16}, "octavo: engine settings: blocks = 16: unknown setting"),
        ({"model": "/no/such"}, "octavo: /no/such: tokenizer.json is missing"),
    ],
)
def test_server_says_why_it_does_not_load(
    scripted_folder: Path, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(pb_utils.TritonModelException, match=message):
        Served(scripted_folder, tmp_path / "1", settings=settings)


def test_server_is_not_started_on_a_second_gpu(scripted_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(pb_utils.TritonModelException, match=r"llm_0_1.*CUDA_VISIBLE_DEVICES"):
        Served(scripted_folder, tmp_path / "1", gpu=1)


def test_server_returns_from_execute_while_there_is_room(
    serve: Serve, scripted_folder: Path
) -> None:
    served = serve(scripted_folder, max_num_seqs=1, max_num_waiting=2)
    gate = StepGate(served)
    asked = [request("A", sampling=GREEDY) for _ in range(2)]
    served.execute(*asked)  # on this thread: it must not wait for the third place
    gate.open()
    assert [each.wait().text for each in asked] == [ANSWER] * 2


def test_server_holds_execute_while_the_engine_is_full(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, max_num_seqs=1, max_num_waiting=1)
    gate = StepGate(served)
    first, second = (
        request("A", sampling={**GREEDY, "max_tokens": 1}),
        request("A", sampling=GREEDY),
    )
    thread = served.execute_aside(first, second)
    gate.wait()
    thread.join(0.2)
    assert thread.is_alive()
    gate.let_through()  # the first request ends with this step
    thread.join(5)
    assert not thread.is_alive()
    assert first.wait().error is None and not second.sender.finished.is_set()
    gate.open()
    assert second.wait().text == ANSWER


def test_server_admits_a_batch_larger_than_the_engine(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, max_num_seqs=2, max_num_waiting=1)
    most = 0
    run = served.engine.runner.run

    def watch(plan: StepPlan) -> SampledTokens:
        nonlocal most
        most = max(most, served.engine._inbox.num_admitted)
        return run(plan)

    served.engine.runner.run = watch  # type: ignore[method-assign]
    asked = [request("A", sampling=GREEDY) for _ in range(10)]
    served.execute(*asked)
    assert [each.wait().text for each in asked] == [ANSWER] * 10
    assert most == 3


def test_server_lets_running_requests_end_when_it_is_finalized(
    serve: Serve, scripted_folder: Path
) -> None:
    served = serve(scripted_folder)
    slow_down(served, 0.005)
    asked = [request("A", stream=stream, sampling=GREEDY) for stream in (True, False)]
    served.execute(*asked)
    served.finalize()
    assert all(each.sender.finished.is_set() for each in asked)
    assert [each.text for each in asked] == [ANSWER[1:], ANSWER]


def test_server_ends_what_outlasts_the_drain(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, drain_timeout_s=2, max_num_seqs=2, max_num_waiting=4)
    slow_down(served, 0.05)
    short = request("A", sampling={**GREEDY, "max_tokens": 3})
    long = [request("A", stream=True, sampling=LONG) for _ in range(4)]
    served.execute(short, *long)
    begin_s = time.monotonic()
    served.finalize()
    assert 2 <= time.monotonic() - begin_s < 10  # to their end it would be 20
    assert short.text == "ABCD"
    assert {each.error for each in long} == {("INTERNAL", "the server is shutting down")}


def test_server_is_finalized_at_once_when_idle(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, drain_timeout_s=20)
    served.ask("A", sampling=GREEDY)
    begin_s = time.monotonic()
    served.finalize()
    assert time.monotonic() - begin_s < 10
    late = request("A")
    served.execute(late)
    assert late.error == ("UNAVAILABLE", "the server is shutting down")


def test_server_answers_everybody_when_the_engine_fails(
    serve: Serve, scripted_folder: Path
) -> None:
    served = serve(scripted_folder, max_num_seqs=1, max_num_waiting=1)
    served.fails = True
    run = served.engine.runner.run

    def fail(plan: StepPlan) -> SampledTokens:
        if served.engine.stats.steps >= 3:
            raise RuntimeError("device lost")
        return run(plan)

    assert engine_up() == 1
    served.engine.runner.run = fail  # type: ignore[method-assign]
    running, waiting = (request("A", stream=True, sampling=LONG) for _ in range(2))
    served.execute(running, waiting)  # full, and so it must be woken
    failure = "the engine has failed: RuntimeError: device lost"
    assert running.wait().error == waiting.wait().error == ("INTERNAL", failure)
    assert served.ask("A").error == ("UNAVAILABLE", failure)
    served.flush_metrics()
    assert engine_up() == 0
    assert served.stats.finished == {"error": 3}


def boom() -> None:
    raise RuntimeError("the other process is gone")


@pytest.mark.parametrize("text", ["A", ""])
@pytest.mark.parametrize("stream", [True, False])
def test_server_serves_the_neighbours_of_a_request_that_cannot_be_answered(
    serve: Serve, scripted_folder: Path, text: str, stream: bool
) -> None:
    served = serve(scripted_folder, sender_threads=1)
    lost, good = request(text, stream=stream, sampling=LONG), request("A", sampling=GREEDY)
    lost.sender.on_send = boom
    assert served.model.execute([lost.triton]) is None
    served.execute(good)
    assert good.wait().text == ANSWER
    assert served.ask("A", sampling=GREEDY).text == ANSWER
    wait_until(lambda: served.num_used_blocks == 0)
    assert lost.sender.violations == []


def test_server_ends_a_request_that_cannot_be_decoded(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, sender_threads=1)
    tokenizer = served.tokenizer
    decode = tokenizer.decode

    def fragile(token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        text = decode(token_ids, skip_special_tokens=skip_special_tokens)
        assert "m" not in text, "no such letter"
        return text

    tokenizer.decode = fragile  # type: ignore[method-assign]
    bad = request("i", stream=True, sampling=LONG)
    good = request("A", stream=True, sampling={**GREEDY, "max_tokens": 40})
    served.execute(bad, good)
    code, message = bad.wait().error or ("", "")
    assert code == "INTERNAL" and message.startswith("AssertionError: no such letter")
    assert len(good.wait().text) == 40
    wait_until(lambda: served.num_used_blocks == 0)
    assert served.engine.stats.generation_tokens < 200 + 40
    assert served.stats.finished == {"error": 1, "length": 1}


def test_server_ends_a_request_that_cannot_be_asked_for(
    serve: Serve, scripted_folder: Path
) -> None:
    served = serve(scripted_folder)
    gate = StepGate(served)
    lost, leaving = (request("A", sampling=LONG) for _ in range(2))
    lost.sender.on_is_cancelled = boom
    served.execute(lost, leaving)
    gate.wait()
    wait_until(lambda: bool(served.engine._inbox.cancelled))
    leaving.sender.cancelled = True  # the poller must have outlived the first one's fault
    gate.open()
    assert lost.wait().error == leaving.wait().error == ("CANCELLED", "Request was cancelled")


def test_server_answers_a_request_that_cannot_be_read(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder)
    bad, good = request("A"), request("A", sampling=GREEDY)
    bad.triton.requested_output_names = boom
    served.execute(bad, good)
    assert bad.error == ("INTERNAL", "RuntimeError: the other process is gone")
    assert good.wait().text == ANSWER


def test_server_takes_requests_from_several_threads(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, max_num_seqs=3, max_num_waiting=1)
    asked = [request("A", sampling=GREEDY, stream=True, **all_flags()) for _ in range(12)]
    threads = [served.execute_aside(*asked[i::3]) for i in range(3)]
    for thread in threads:
        thread.join()
    assert [each.wait().text for each in asked] == [ANSWER[1:]] * 12
    assert threading.current_thread() not in threads
