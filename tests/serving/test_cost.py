"""What a request cost, and what the server did: receipts, metrics, the request log."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import triton_python_backend_utils as pb_utils

from octavo.errors import OctavoError
from octavo.planner.traffic import LoggedRequest
from octavo.serving import wire
from octavo.serving.request_log import RequestLog
from tests.serving.harness import (
    GREEDY,
    Request,
    Served,
    ask_in_pieces,
    request,
    wait_until,
)
from tests.serving.test_metrics import value

Serve = Callable[..., Served]

PRICE: dict[str, object] = {"price_usd_per_hour": 3.6, "price_as_of": "2026-11-20"}
USD_PER_S = 0.001


def receipts(asked: Request) -> list[Any]:
    """Of each response."""
    return [json.loads(text) for text in asked.values(wire.COST)]


def total(name: str) -> float:
    """Of all labels."""
    (family,) = [family for family in pb_utils.MetricFamily.created if family.name == name]
    return sum(float(metric.value()) for metric in family.metrics.values())


@pytest.mark.parametrize("batched", [True, False])
def test_a_receipt_comes_with_the_last_response(
    serve: Serve, scripted_folder: Path, batched: bool
) -> None:
    served = serve(scripted_folder, batched=batched, **PRICE)
    sampling = {**GREEDY, "max_tokens": 20, "n": 2, "temperature": 1, "seed": 1}
    asked = ask_in_pieces(served, "A", sampling=sampling, return_cost=True)
    *early, receipt = receipts(asked)
    assert early and set(early) == {None}
    assert receipt["prefill_s"] > 0 and receipt["decode_s"] > 0 and receipt["queue_s"] > 0
    for part in ("prefill", "decode", "saved", "held"):
        assert receipt[f"{part}_usd"] == pytest.approx(receipt[f"{part}_s"] * USD_PER_S)
    assert receipt["usd"] == pytest.approx(receipt["prefill_usd"] + receipt["decode_usd"])
    assert (receipt["price_usd_per_hour"], receipt["price_as_of"]) == (3.6, "2026-11-20")
    assert receipt["cached_tokens"] == 0
    # It was alone: all the engine did was for it.
    wait_until(lambda: served.engine.gauges.num_running == 0)
    busy_s = sum(served.engine.stats.busy_s.values())
    assert receipt["prefill_s"] + receipt["decode_s"] == pytest.approx(busy_s)


def test_a_receipt_says_what_cached_tokens_saved(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, **PRICE)
    prompt = "ABCDEFGHIJKLMNOP"
    sampling = {**GREEDY, "max_tokens": 2}
    served.ask(prompt, sampling=sampling)
    (receipt,) = receipts(served.ask(prompt, sampling=sampling, return_cost=True))
    assert receipt["cached_tokens"] == 16  # <s> A … O
    assert receipt["saved_usd"] > 0 and receipt["held_usd"] > 0


def test_without_a_price_dollars_are_null(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder)
    (receipt,) = receipts(served.ask("A", sampling=GREEDY, return_cost=True))
    assert {name for name, part in receipt.items() if part is None} == {
        "usd", "prefill_usd", "decode_usd", "saved_usd", "held_usd", "price_usd_per_hour",
        "price_as_of",
    }  # fmt: skip
    assert receipt["decode_s"] > 0
    served.flush_metrics()
    names = {family.name for family in pb_utils.MetricFamily.created}
    assert not {name for name in names if "usd" in name or "price" in name}
    assert value("octavo_attributed_seconds_total", tenant="", phase="decode") > 0


def test_no_receipt_unless_it_is_asked_for(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, **PRICE)
    for flags in ({}, {"return_cost": False}):
        asked = served.ask("A", sampling=GREEDY, **flags)
        assert all(wire.COST not in chunk for chunk in asked.chunks)


def test_a_stop_string_has_its_receipt_too(serve: Serve, scripted_folder: Path) -> None:
    """The engine does not know of the end when the answer goes out."""
    served = serve(scripted_folder, **PRICE)
    sampling = {**GREEDY, "max_tokens": 30, "stop": "DE"}
    (receipt,) = receipts(served.ask("A", sampling=sampling, return_cost=True))
    assert receipt["decode_s"] > 0


def test_costs_on_metrics_meet_the_bill(serve: Serve, scripted_folder: Path) -> None:
    served = serve(scripted_folder, **PRICE, max_num_seqs=2)
    began_s = time.perf_counter()
    asked = [
        request("A" * (1 + i), sampling={**GREEDY, "max_tokens": 20, "tenant": tenant})
        for i, tenant in enumerate(("blue", "green", "blue"))
    ]
    served.execute(*asked)
    for each in asked:
        assert each.wait().error is None
    time.sleep(0.3)
    served.finalize()
    wall_s = time.perf_counter() - began_s
    # The engine began to wait before it was first asked.
    assert total("octavo_cost_usd_total") == pytest.approx(wall_s * USD_PER_S, rel=0.05)
    seconds = [
        total(f"octavo_{name}_seconds_total") for name in ("busy", "idle", "overhead")
    ]  # fmt: skip
    assert total("octavo_cost_usd_total") == pytest.approx(sum(seconds) * USD_PER_S, rel=1e-6)
    assert total("octavo_attributed_seconds_total") == pytest.approx(seconds[0], rel=1e-6)
    assert value("octavo_cost_usd_total", tenant="(engine)", phase="idle") >= 0.3 * USD_PER_S
    blue, green = (
        value("octavo_cost_usd_total", tenant=tenant, phase="decode")
        for tenant in ("blue", "green")
    )
    assert 0 < green < blue
    per_million = value("octavo_cost_per_million_tokens_usd", tokens="output")
    assert per_million == pytest.approx(total("octavo_cost_usd_total") / 60 * 1e6, rel=1e-6)
    assert value("octavo_price_usd_per_hour") == 3.6
    assert value("octavo_price_as_of_timestamp_seconds") == 1_795_132_800  # 2026-11-20 00:00 UTC


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_request_log_has_a_line_for_each_request(
    serve: Serve, scripted_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "requests.jsonl"
    served = serve(scripted_folder, request_log=str(path))
    before_s = time.time()
    for tenant in ("blue", None):
        sampling = {**GREEDY, "max_tokens": 3, "n": 2}
        served.ask("secret", sampling={**sampling, **({"tenant": tenant} if tenant else {})})
    served.ask("secret", sampling={"n": 0})  # never began
    late = served.ask("secret", sampling={**GREEDY, "max_tokens": 200, "deadline_ms": 1})
    assert late.error is not None
    served.finalize()
    lines = read_log(path)
    assert [tuple(line) for line in lines] == 3 * [tuple(LoggedRequest.__dataclass_fields__)]
    num_prompt = len(served.tokenizer.encode("secret"))
    first, second, third = lines
    assert (first["tenant"], second["tenant"]) == ("blue", "")
    for line in (first, second):
        assert line["prompt_tokens"] == num_prompt and line["output_tokens"] == 6
        assert line["finish_reason"] == "length" and line["cached_tokens"] == 0
        assert before_s - 0.1 < line["arrival_s"] < time.time()
        assert 0 < line["ttft_s"] <= line["e2e_s"] < 60
    assert third["finish_reason"] == "deadline" and third["ttft_s"] is None
    assert "secret" not in path.read_text(encoding="utf-8")


def test_the_request_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for number in range(2):
        log = RequestLog(path, 2**20)
        log.add(LoggedRequest(float(number), "", 1, 0, 1, "stop", None, 0.5))
        log.close()
    assert [line["arrival_s"] for line in read_log(path)] == [0.0, 1.0]


def test_the_request_log_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = RequestLog(path, 1000)
    for number in range(100):
        log.add(LoggedRequest(float(number), "", 1, 0, 1, "stop", None, 0.5))
        time.sleep(0.001)
    log.close()
    before = tmp_path / "log.1"
    assert {before} <= {*tmp_path.iterdir()} <= {before, path}
    files = [file for file in (before, path) if file.exists()]
    assert all(file.stat().st_size < 2000 for file in files)
    kept = [line["arrival_s"] for file in files for line in read_log(file)]
    assert kept == list(map(float, range(100 - len(kept), 100))), "the newest, in order"


def test_a_disk_that_fails_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    log = RequestLog(Path("/dev/full"), 2**20)
    log.add(LoggedRequest(0.0, "", 1, 0, 1, "stop", None, 0.5))
    wait_until(lambda: log.dropped > 0)
    log.add(LoggedRequest(1.0, "", 1, 0, 1, "stop", None, 0.5))
    wait_until(lambda: log.dropped > 1)
    log.close()


def test_a_request_log_that_cannot_be_written_is_refused(
    tmp_path: Path, serve: Serve, scripted_folder: Path
) -> None:
    with pytest.raises(OctavoError, match=r"request_log = .*No such file or directory"):
        RequestLog(tmp_path / "missing" / "log", 2**20)
