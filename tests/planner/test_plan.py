"""A model on a machine under a workload: limits, stages, bills."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config import SLO
from octavo.errors import ConfigError
from octavo.models.known import find_config
from octavo.models.sizes import model_sizes
from octavo.planner import advice
from octavo.planner.capacity import Request
from octavo.planner.hardware import Machine, find_machine
from octavo.planner.limits import binding_limit
from octavo.planner.model import ModelSizes
from octavo.planner.plan import Workload, bill, evaluate
from octavo.planner.setup import Setup, fit
from octavo.planner.stages import no_int4, stages

H200 = find_machine("h200")
CHAT = Workload(Request(1024, 256, 512))


def known(name: str) -> ModelSizes:
    return model_sizes(find_config(name)[1], name)


LLAMA = known("llama-3.1-8b")


def test_memory_of_a_gpu_is_divided_as_the_engine_does() -> None:
    found = fit(LLAMA, H200.accelerator, CHAT.request, Setup())
    # 90 % of 141 GB less 16.06 GB of weights, less the largest step: 256 rows of two residuals,
    # 28,672 outputs of gate and up and 14,336 inner ones in 16 bits, and 32 rows of logits twice.
    step = 256 * (2 * 4096 + 28_672 + 14_336) * 2 + 2 * 32 * 128_256 * 4
    kv_bytes = int(0.9 * 141e9) - 2 * 8_030_261_248 - step
    assert found.kv_bytes == kv_bytes
    blocks = kv_bytes // (16 * 128 * 1024)
    assert found.num_blocks == blocks
    # 1,024 + 255 tokens are 80 blocks, of which 32 are shared.
    assert found.requests == (blocks - 32) // 48
    assert found.request_bytes == 80 * 2 * 2**20 and found.shared_bytes == 64 * 2**20


def test_kv_memory_can_be_given_and_has_to_be_there() -> None:
    found = fit(LLAMA, H200.accelerator, CHAT.request, Setup(kv_cache_bytes=2**30))
    assert found.num_blocks == 512 and found.requests == 480 // 48
    with pytest.raises(ConfigError, match=r"--kv-memory = 1024 GiB: 103.1 GiB of h200 are"):
        fit(LLAMA, H200.accelerator, CHAT.request, Setup(kv_cache_bytes=2**40))


def test_a_request_longer_than_the_contexts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokens = 132096: .* contexts of up to 131072 tokens"):
        fit(LLAMA, H200.accelerator, Request(131_072, 1024), Setup())
    with pytest.raises(ConfigError, match=r"--max-model-len = 200000: .* up to 131072 tokens"):
        fit(LLAMA, H200.accelerator, Request(1, 1), Setup(max_model_len=200_000))
    with pytest.raises(ConfigError, match=r"--max-model-len = 100: .* are 101 tokens"):
        fit(LLAMA, H200.accelerator, Request(100, 1), Setup(max_model_len=100))
    fit(LLAMA, H200.accelerator, Request(99, 1), Setup(max_model_len=100))


@pytest.mark.parametrize(
    ("model", "hardware", "workload", "setup", "limit", "words"),
    [
        ("llama-3.1-70b", "h200", CHAT, {}, "weights", "Weights: .*131 GiB.* leave no KV memory"),
        ("llama-3.1-8b", "l4", Workload(Request(60_000, 9)), {}, "kv", "KV memory: .*one request"),
        ("llama-3.1-8b", "h200", CHAT, {"max_num_seqs": 10**6}, "step",
         r"Step: the weights \(15.0 GiB\) and the largest step \(956 GiB\) leave no KV memory on "
         r"h200; logits of 1,000,000 sequences take 956 GiB of it: lower --max-num-seqs"),
        ("llama-3.1-8b", "l4", CHAT, {"max_num_batched_tokens": 65_536}, "step",
         r"Step: .* activations of 65,536 tokens take 6.2 GiB of it: lower --max-batched-tokens"),
        ("llama-3.1-8b", "h200", CHAT, {}, "max_num_seqs", "max_num_seqs: it stops .* at 32"),
        ("llama-3.1-8b", "l4", Workload(Request(8000, 200), slo=SLO(60, 60)), {"max_num_seqs": 400},
         "kv", "KV memory: .* requests at once"),
        ("llama-3.1-8b", "h200", CHAT, {"max_num_seqs": None}, "tpot", "TPOT: with .*SLO's 100 ms"),
        ("llama-3.1-8b", "h200", replace(CHAT, slo=SLO(0.05, 9)), {"max_num_seqs": None}, "ttft",
         "TTFT: with .*SLO's 50.0 ms"),
        ("llama-3.1-8b", "l4", replace(CHAT, slo=SLO(2, 0.01)), {}, "tpot",
         r"SLO: no batch meets it on l4: one request alone has a TTFT of .* \(limit 10.0 ms\)"),
    ],
)  # fmt: skip
def test_the_limit_that_binds(
    model: str, hardware: str, workload: Workload, setup: dict[str, Any], limit: str, words: str
) -> None:
    outcome = evaluate(known(model), find_machine(hardware).accelerator, workload, Setup(**setup))
    assert outcome.limit == limit
    sentence = binding_limit(outcome, workload, hardware)
    assert re.match(words, sentence), sentence


def test_float16_has_the_peak_of_bfloat16_where_there_is_no_other() -> None:
    host = find_machine("xeon-8480").accelerator
    own = replace(LLAMA, dtype="float16")
    alike = [evaluate(each, host, CHAT, Setup()) for each in (own, LLAMA)]
    assert alike[0].lone == alike[1].lone and alike[0].fit == alike[1].fit
    with pytest.raises(ConfigError, match="xeon-8480: no peak for float32 is known"):
        evaluate(replace(LLAMA, dtype="float32"), host, CHAT, Setup())


def test_the_largest_batch_is_the_largest() -> None:
    outcome = evaluate(LLAMA, H200.accelerator, CHAT, Setup(max_num_seqs=None))
    assert outcome.best is not None
    assert outcome.best.ttft_s <= 2 and outcome.best.tpot_s <= 0.1
    beyond = outcome.engine.at(outcome.best.batch + 1)
    assert beyond.ttft_s > 2 or beyond.tpot_s > 0.1


def test_stages_follow_the_playbook() -> None:
    found = stages(LLAMA, H200.accelerator, CHAT, Setup())
    assert [each.name for each in found] == [
        "contiguous KV memory", "paging", "sharing prefixes", "KV in int8", "weights in int4",
        "a larger batch",
    ]  # fmt: skip
    assert [each.is_gated for each in found] == [False, False, False, True, True, False]
    fits = [each.outcome.fit.requests for each in found]
    assert fits[0] < fits[1] < fits[2] < fits[3] < fits[4]
    # Contiguous: each reserves 131,072 tokens of 128 KiB. Paging frees what is not used of them.
    reserved = 131_072 * 128 * 1024
    assert fits[0] == found[0].outcome.fit.kv_bytes // reserved
    assert found[1].freed_bytes == fits[0] * (reserved - 80 * 2 * 2**20)
    assert found[2].freed_bytes == (fits[1] - 1) * 64 * 2**20
    weights = [each.outcome.fit.weights.stored for each in found]
    assert found[4].freed_bytes == weights[3] - weights[4]


def test_stages_leave_out_what_is_there_already() -> None:
    setup = Setup(weight_format="int4", kv_cache_dtype="int8", max_num_seqs=None)
    alone = Workload(Request(1024, 256))
    most = stages(LLAMA, H200.accelerator, alone, replace(setup, max_num_seqs=10**6))
    assert "a larger batch" not in [each.name for each in most]
    assert [each.name for each in stages(LLAMA, H200.accelerator, alone, setup)] == [
        "contiguous KV memory", "paging",
    ]  # fmt: skip


@pytest.mark.parametrize("sizes", [{"hidden_size": 4097}, {"intermediate_size": 172}])
def test_a_model_that_int4_cannot_group_is_planned_without_it(sizes: dict[str, int]) -> None:
    own = replace(LLAMA, shape=replace(LLAMA.shape, **sizes))
    found = stages(own, H200.accelerator, CHAT, Setup())
    assert [each.name for each in found][-2:] == ["KV in int8", "a larger batch"]
    assert found[-1].setup.weight_format == "auto"
    why = no_int4(own, Setup())
    assert why is not None and re.search(rf"rows of {next(iter(sizes.values()))} weights", why)
    assert no_int4(LLAMA, Setup()) is None
    assert no_int4(own, Setup(weight_format="int8")) is None


def test_quantization_is_proposed_behind_paging_and_sharing() -> None:
    found = stages(LLAMA, H200.accelerator, CHAT, Setup())
    costs: list[float | None] = [9.0, 3.0, 2.0, 1.95, 1.0, 0.9]
    assert advice.next_change(found, costs) == (
        "Next: weights in int4, 49% cheaper; measure its quality first: octavo gate."
    )
    assert advice.next_change(found, [9.0, 3.0, 2.0, 1.99, 1.98, 1.97]) is None
    nothing_fits: list[float | None] = [None, None, None, None, 1.0, 0.5]
    said = advice.next_change(found, nothing_fits)
    assert said is not None and "weights in int4: with it the model fits" in said


def test_a_bill_by_hand() -> None:
    outcome = evaluate(LLAMA, H200.accelerator, CHAT, Setup())
    assert outcome.best is not None
    rate = outcome.best.requests_per_s * 0.7 * 9.5  # ten engines
    machine = Machine("eight", H200.accelerator, 8)
    workload = replace(CHAT, requests_per_s=rate)
    found = bill(outcome, machine, 64.0, workload)
    assert (found.replicas, found.machines, found.usd_per_hour) == (10, 2, 128.0)
    assert found.usd_per_million_good_tokens == pytest.approx(128 / (rate * 256 * 3600) * 1e6)
    assert found.at_load.requests_per_s == pytest.approx(rate / 10)
    parts = (
        rate
        * 3600
        / 1e6
        * (found.input_usd_per_million * 1024 + found.output_usd_per_million * 256)
    )
    assert parts == pytest.approx(128.0)
    shared = bill(outcome, machine, 64.0, workload, whole_machines=False)
    assert shared.machines == 1.25 and shared.usd_per_hour == 80.0
    assert (found.idle_accelerators, shared.idle_accelerators) == (6, 0)


def test_without_a_rate_a_machine_is_full() -> None:
    """So one accelerator costs what its share of a machine does."""
    outcome = evaluate(LLAMA, H200.accelerator, CHAT, Setup())
    assert outcome.best is not None
    machine, served = Machine("eight", H200.accelerator, 8), 0.7 * outcome.best.requests_per_s
    whole = bill(outcome, machine, 64.0, CHAT)
    assert (whole.replicas, whole.machines, whole.idle_accelerators) == (8, 1, 0)
    assert whole.requests_per_s == pytest.approx(8 * served)
    share = bill(outcome, machine, 64.0, CHAT, whole_machines=False)
    assert (share.replicas, share.usd_per_hour) == (1, 8.0)
    assert share.requests_per_s == pytest.approx(served)
    assert share.usd_per_million_good_tokens == pytest.approx(whole.usd_per_million_good_tokens)


@settings(deadline=None, max_examples=40)
@given(rate=st.floats(0.01, 500), factor=st.floats(1, 5))
def test_more_traffic_never_costs_less_in_total(rate: float, factor: float) -> None:
    outcome = evaluate(LLAMA, H200.accelerator, CHAT, Setup())
    few, many = (
        bill(outcome, find_machine("p5en.48xlarge"), 63.296, replace(CHAT, requests_per_s=each))
        for each in (rate, rate * factor)
    )
    assert few.usd_per_hour <= many.usd_per_hour


@settings(deadline=None, max_examples=40)
@given(prompt=st.integers(1, 8000), more=st.integers(0, 8000), kv=st.sampled_from(["auto", "int8"]))
def test_a_longer_context_never_needs_less(prompt: int, more: int, kv: str) -> None:
    setup = Setup(kv_cache_dtype=kv)
    short, long = (
        fit(LLAMA, H200.accelerator, Request(each, 100), setup) for each in (prompt, prompt + more)
    )
    assert short.request_bytes <= long.request_bytes and short.requests >= long.requests
    assert short.needed_bytes(7) <= long.needed_bytes(7)
