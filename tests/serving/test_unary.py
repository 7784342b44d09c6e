"""The unary model's front and the engine's end of the relay, over their real socket."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import triton_python_backend_utils as pb_utils

from octavo.errors import ConfigError
from octavo.serving import relay, wire
from octavo.serving.unary import UnaryModel
from tests.serving.harness import GREEDY, Request, Served, StepGate, all_flags, request, wait_until

Serve = Callable[..., Served]


class Front:
    def __init__(self, engine_model: str = "llm") -> None:
        self.model = UnaryModel()
        parameters = {"engine_model": {"string_value": engine_model}}
        config = {"max_batch_size": 16, "parameters": parameters}
        self.model.initialize({"model_config": json.dumps(config)})

    def send(self, *requests: Request) -> None:
        assert self.model.execute([each.triton for each in requests]) is None

    def ask(self, text: str = "A", **values: object) -> Request:
        asked = request(text, **values)  # type: ignore[arg-type]
        self.send(asked)
        return asked.wait()


@pytest.fixture
def served(serve: Serve, scripted_folder: Path) -> Served:
    return serve(scripted_folder, max_num_seqs=2, max_num_waiting=0)


@pytest.fixture
def front(served: Served) -> Iterator[Front]:
    front = Front()
    yield front
    front.model.finalize()


def assert_one_final(asked: Request) -> None:
    assert asked.sender.flags == [pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL]
    assert asked.sender.violations == []


def test_unary_answers_as_the_engine_does(served: Served, front: Front) -> None:
    sampling = {"temperature": 3.0, "seed": 4, "max_tokens": 12, "n": 2, "logprobs": 1}
    direct = served.ask("A", sampling=sampling, **all_flags())
    asked = front.ask("A", sampling=sampling, **all_flags())
    assert_one_final(asked)
    for output in wire.RETURN_FLAGS:
        if output not in (wire.CACHED_TOKENS, wire.COST):  # these differ from call to call
            assert asked.values(output) == direct.values(output), output
    assert asked.text == direct.text
    assert {name: v.dtype for name, v in asked.chunks[0].items()} == {
        name: v.dtype for name, v in direct.chunks[0].items()
    }


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"sampling": {"top_p": 7}}, "top_p: got 7; should be less than or equal to 1"),
        ({"sampling": "{"}, "sampling_parameters: got {; JSON is expected"),
        ({"text": ""}, "text_input: got"),
        ({"sampling": {"max_tokens": 10**6}}, "max_tokens: got 1000000; at most"),
        ({"stream": True}, "stream: got true; only false is allowed here"),
    ],
)
def test_unary_refuses_as_the_engine_does(
    front: Front, values: dict[str, object], part: str
) -> None:
    asked = front.ask(**{"sampling": GREEDY, **values})
    assert_one_final(asked)
    assert asked.error is not None and asked.error[0] == "INVALID_ARG"
    assert asked.error[1].startswith(part)


def test_unary_requests_run_side_by_side(served: Served, front: Front) -> None:
    gate = StepGate(served)
    pair = [request("A", sampling=GREEDY), request("B", sampling=GREEDY)]
    thread = threading.Thread(target=front.send, args=pair)
    thread.start()
    wait_until(lambda: served.engine._inbox.num_admitted == 2)
    gate.open()
    thread.join()
    assert [each.wait().text for each in pair] == ["ABCDEFGHIJKLMNOPQ", "BCDEFGHIJKLMNOPQR"]


def test_unary_holds_back_while_the_engine_is_full(served: Served, front: Front) -> None:
    gate = StepGate(served)
    running = [request("A", sampling=GREEDY) for _ in range(2)]
    deliver = served.execute_aside(*running)
    gate.wait()
    patient, leaving = request("B", sampling=GREEDY), request("C", sampling=GREEDY)
    thread = threading.Thread(target=front.send, args=(patient, leaving))
    thread.start()
    leaving.sender.cancelled = True  # seen although it waits in hand
    assert leaving.error == ("CANCELLED", "Request was cancelled")
    assert thread.is_alive() and not patient.sender.responses
    gate.open()
    thread.join(30)
    deliver.join(30)
    assert patient.wait().text == "BCDEFGHIJKLMNOPQR"


def test_unary_gives_blocks_back_when_the_client_leaves(served: Served, front: Front) -> None:
    gate = StepGate(served)
    asked = request("A", sampling={**GREEDY, "max_tokens": 200})
    front.send(asked)
    gate.wait()
    gate.let_through()
    gate.wait()
    assert served.num_used_blocks > 0
    asked.sender.cancelled = True
    wait_until(lambda: bool(served.engine._inbox.cancelled))
    gate.open()
    assert asked.error == ("CANCELLED", "Request was cancelled")
    wait_until(lambda: served.num_used_blocks == 0)


def test_unary_goes_on_when_one_answer_cannot_be_sent(served: Served, front: Front) -> None:
    def fail() -> None:
        raise RuntimeError("the response is lost")

    lost = request("A", sampling=GREEDY)
    lost.sender.on_send = fail
    front.send(lost)
    assert front.ask(sampling=GREEDY).text == "ABCDEFGHIJKLMNOPQ"


def test_unary_ends_its_threads_before_finalize_returns(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = UnaryModel._fail

    def fail_late(self: UnaryModel, pending: dict[int, Any]) -> None:
        time.sleep(0.2)  # the thread that reads is slow to see the end
        fail(self, pending)

    monkeypatch.setattr(UnaryModel, "_fail", fail_late)
    front = Front()
    front.ask(sampling=GREEDY)
    front.model.finalize()
    assert "octavo-unary" not in [thread.name for thread in threading.enumerate()]


def test_unary_says_when_there_is_no_engine() -> None:
    front = Front("other")
    asked = front.ask(sampling=GREEDY)
    assert_one_final(asked)
    message = "the engine of model other is not there: not loaded, or stopped"
    assert asked.error == ("UNAVAILABLE", message)
    front.model.finalize()


def test_unary_survives_the_engine_and_finds_the_next_one(
    serve: Serve, scripted_folder: Path, tmp_path: Path
) -> None:
    first = serve(scripted_folder)
    front = Front()
    gate = StepGate(first)
    cut_off = request("A", sampling={**GREEDY, "max_tokens": 200})
    front.send(cut_off)
    gate.wait()
    first.engine.config = first.engine.config.__class__(
        model=first.engine.config.model, drain_timeout_s=0.0
    )
    stopping = threading.Thread(target=first.finalize)
    stopping.start()
    wait_until(lambda: bool(first.engine._inbox.cancelled))
    gate.open()
    stopping.join(30)
    assert cut_off.error is not None and cut_off.error[0] in ("INTERNAL", "UNAVAILABLE")
    assert front.ask(sampling=GREEDY).error is not None
    second = serve(scripted_folder)
    assert front.ask(sampling=GREEDY).text == "ABCDEFGHIJKLMNOPQ"
    front.model.finalize()
    second.finalize()


def test_relay_refuses_a_folder_that_others_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = relay.socket_path("llm")
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.parent.chmod(0o755)
    with pytest.raises(ConfigError, match="mode 0700"):
        relay.socket_path("llm")


def test_relay_removes_the_sockets_of_killed_servers(tmp_path: Path) -> None:
    live, young, old = (tmp_path / f"{name}.sock" for name in ("live", "young", "old"))
    server = relay.RelayServer(live, lambda arrivals: None)
    for path in (young, old):
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(path))
    for path in (live, old):
        os.utime(path, (0, 0))
    other = relay.RelayServer(tmp_path / "other.sock", lambda arrivals: None)
    assert live.exists() and young.exists() and not old.exists()
    other.close()
    server.close()
    assert sorted(tmp_path.iterdir()) == [young]
