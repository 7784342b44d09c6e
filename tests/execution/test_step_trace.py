"""Traces of an engine's steps: whole, on one clock, and nothing that serving depends on."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from factories import make_engine, random_prompts
from octavo import spans
from octavo.engine import Engine
from octavo.generation import GenerationRequest
from octavo.sampling_params import parse

Event = dict[str, Any]


def run(engine: Engine) -> list[list[int]]:
    params = parse({"temperature": 0, "max_tokens": 12, "ignore_eos": True})
    results = engine.generate(random_prompts([20, 20, 20]), params)
    for thread in threading.enumerate():
        if thread.name == "octavo-step-trace":
            thread.join()
    return [result.token_ids for result in results]


def events(file: Path) -> list[Event]:
    trace = json.loads(file.read_text(encoding="utf-8"))
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def is_within(inner: Event, outer: Event) -> bool:
    # Times are written in µs with a few digits.
    begin, end = outer["ts"] - 0.01, outer["ts"] + outer["dur"] + 0.01
    return bool(begin <= inner["ts"] and inner["ts"] + inner["dur"] <= end)


@pytest.fixture(scope="module", params=["auto", "reference"])
def traced(
    request: pytest.FixtureRequest, toy_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Event], str]:
    folder = tmp_path_factory.mktemp("profiles") / "new"
    settings = {"kernels": request.param, "num_blocks": 64}
    plain = run(make_engine(toy_folder, **settings))
    engine = make_engine(toy_folder, profile_steps="2-5", profile_folder=folder, **settings)
    assert run(engine) == plain, "a trace changes no token"
    assert not spans.is_recording()
    library = engine.runner.library
    assert library is None or not library.is_timed
    (file,) = folder.iterdir()
    assert file.name.startswith("steps-2-5-") and file.suffix == ".json"
    return events(file), request.param


def test_steps_from_first_to_last_say_what_they_compute(
    traced: tuple[list[Event], str],
) -> None:
    steps = [event["name"] for event in traced[0] if event["name"].startswith("step ")]
    assert steps == [f"step {number}: decode[3]" for number in (2, 3, 4, 5)]


def test_ranges_lie_within_their_step(traced: tuple[list[Event], str]) -> None:
    found, _ = traced
    steps = [event for event in found if event["name"].startswith("step ")]
    for name in ("schedule", "batch", "forward", "sample", "update", "hand out"):
        own = [event for event in found if event["cat"] == "octavo" and event["name"] == name]
        assert len(own) == len(steps), name
        assert all(map(is_within, own, steps)), name
    forwards = [event for event in found if event["name"] == "forward"]
    for name in ("qkv", "attend", "down", "lm_head"):
        own = [event for event in found if event["cat"] == "octavo" and event["name"] == name]
        assert len(own) == 4 * (1 if name == "lm_head" else 2), name
        assert all(any(is_within(each, forward) for forward in forwards) for each in own), name


def test_torchs_events_are_on_the_same_clock(traced: tuple[list[Event], str]) -> None:
    found, kernels = traced
    torchs = [event for event in found if event["cat"] == "cpu_op"]
    assert torchs
    if kernels == "reference":
        products = [event for event in torchs if event["name"] == "aten::linear"]
        ranges = [
            event for event in found
            if event["cat"] == "octavo" and event["name"] in ("qkv", "output", "gate_up", "down",
                                                              "lm_head")
        ]  # fmt: skip
        assert len(products) == len(ranges) == 4 * (2 * 4 + 1)
        for each in products:
            begin, end = each["ts"], each["ts"] + each["dur"]
            assert any(
                own["ts"] - 50 <= begin and end <= own["ts"] + own["dur"] + 50 for own in ranges
            ), each


def test_an_engine_that_ends_before_leaves_what_there_was(toy_folder: Path, tmp_path: Path) -> None:
    engine = make_engine(toy_folder, profile_steps="2-900", profile_folder=tmp_path)
    engine.start()
    done = threading.Event()
    engine.submit(
        GenerationRequest(
            [1, 2, 3], parse({"temperature": 0, "max_tokens": 5, "ignore_eos": True}),
            lambda output: done.set() if output.finish_reason else None,
        )
    )  # fmt: skip
    assert done.wait(60)
    engine.stop()
    for thread in threading.enumerate():
        if thread.name == "octavo-step-trace":
            thread.join()
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("steps-2-5-")
    assert sum(event["name"].startswith("step ") for event in events(file)) == 4


def test_a_folder_that_cannot_be_written_does_not_end_serving(
    toy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    engine = make_engine(toy_folder, profile_steps="1-2", profile_folder=blocked / "below")
    with caplog.at_level(logging.ERROR):
        assert [len(tokens) for tokens in run(engine)] == [12, 12, 12]
    assert "could not be written" in caplog.text


def test_a_trace_that_cannot_begin_does_not_end_serving(
    toy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(toy_folder, profile_steps="1-2", profile_folder=tmp_path)
    with spans.recording(spans.Recorder()), caplog.at_level(logging.ERROR):
        assert [len(tokens) for tokens in run(engine)] == [12, 12, 12]
    assert "serving goes on" in caplog.text
