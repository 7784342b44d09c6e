"""What fits: by hand, by the engine's own scheduler, and by what a checkpoint really weighs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from factories import (
    FAMILIES,
    make_engine,
    make_scheduler,
    make_sequence,
    write_checkpoint,
    write_family,
)
from octavo.models.known import find_config, known_names
from octavo.models.sizes import model_sizes
from octavo.planner import capacity
from octavo.planner.capacity import Request, blocks_of
from octavo.planner.model import (
    ModelSizes,
    format_of,
    kv_layout,
    kv_token_bytes,
    weight_bytes,
)
from octavo.scheduling.scheduler import Scheduler


def known(name: str) -> ModelSizes:
    return model_sizes(find_config(name)[1], name)


# Parameters of the models' pages on the Hugging Face hub ("Model size", from safetensors' headers).
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-70b", 68_976_648_192),
        ("tinyllama-1.1b", 1_100_048_384),
        ("mistral-7b", 7_248_023_552),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_well_known_models_weigh_what_their_pages_say(name: str, parameters: int) -> None:
    model = known(name)
    assert weight_bytes(model, format_of(model)).stored == 2 * parameters


# KiB of keys and values of a token in 16 bits, as vLLM and Databricks count them:
# 2 · layers · KV heads · head_dim · 2 bytes.
@pytest.mark.parametrize(
    ("name", "kib"),
    [("llama-2-7b", 512), ("llama-3.1-8b", 128), ("llama-3.1-70b", 320), ("llama-3.2-1b", 32),
     ("qwen2.5-0.5b", 12), ("qwen3-0.6b", 112), ("qwen3-8b", 144), ("tinyllama-1.1b", 22)],
)  # fmt: skip
def test_a_tokens_keys_and_values(name: str, kib: int) -> None:
    assert kv_token_bytes(kv_layout(known(name))) == kib * 1024


def test_int8_keys_and_values_have_a_scale_for_each_head() -> None:
    # 2 · 32 layers · 8 heads · (128 + 2) bytes.
    assert kv_token_bytes(kv_layout(known("llama-3.1-8b"), "int8")) == 2 * 32 * 8 * 130


def test_a_prompt_of_32k_on_70b_needs_10_gib_and_without_grouped_queries_80() -> None:
    request = Request(32_768, 1)
    for name, gib in (("llama-3.1-70b", 10), ("llama-3.1-70b-without-gqa", 80)):
        layout = kv_layout(known(name))
        blocks = capacity.request_blocks(request, layout.block_size)
        assert blocks * layout.block_bytes == gib * 2**30


def test_weights_in_int4_by_hand() -> None:
    # A Llama-3.1-8B layer has 4096·6144 + 4096·4096 + 2·4096·14336 + 14336·4096 weights. 32 of
    # them at 4 bits with a 16 bit scale for 128; an int8 lm_head with a float scale a row; norms.
    layer = 4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14_336
    step = 32 * (layer // 2 + 2 * layer // 128) + 128_256 * (4096 + 4) + 65 * 4096 * 2
    model = known("llama-3.1-8b")
    found = weight_bytes(model, format_of(model, "int4"))
    assert found.step == step
    assert found.stored == step + 128_256 * 4096 * 2  # the embedding stays as it is


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weight_format", ["auto", "int8", "int4"])
def test_what_an_engine_loads_weighs_as_planned(
    tied: bool, weight_format: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, tie_word_embeddings=tied)
    group = {"weight_group_size": 32} if weight_format == "int4" else {}
    engine = make_engine(folder, weight_format=weight_format, **group)
    model = model_sizes(engine.runner.model_config, "toy")
    planned = weight_bytes(model, format_of(model, weight_format, 32))
    loaded = engine.runner.model
    assert (planned.step, planned.stored) == (loaded.step_weight_bytes, loaded.num_bytes)


@pytest.mark.parametrize("architecture", list(FAMILIES))
def test_every_family_weighs_as_planned(architecture: str, tmp_path: Path) -> None:
    write_family(tmp_path, architecture)
    engine = make_engine(tmp_path)
    model = model_sizes(engine.runner.model_config, architecture, "float32")
    planned = weight_bytes(model, format_of(model))
    loaded = engine.runner.model
    assert (planned.step, planned.stored) == (loaded.step_weight_bytes, loaded.num_bytes)
    assert kv_layout(model, block_tokens=4) == engine.runner.kv_cache.layout


def all_run_at_once(num_blocks: int, request: Request, count: int, watermark: float) -> bool:
    """Whether the engine's scheduler takes `count` requests from their beginning to their end, all
    at the same time, none preempted. What they share has been computed before."""
    scheduler = make_scheduler(
        num_blocks=num_blocks, max_num_seqs=4096, max_num_batched_tokens=2**20,
        watermark_ratio=watermark, enable_prefix_caching=True,
    )  # fmt: skip
    if request.shared_tokens:
        scheduler.add(make_sequence(0, prompt=request.shared_tokens, max_tokens=1))
        most_running(scheduler)
    for index in range(1, count + 1):
        sequence = make_sequence(
            index, prompt=request.prompt_tokens, max_tokens=request.output_tokens
        )
        for place in range(request.shared_tokens, request.prompt_tokens):
            sequence.token_ids[place] = 1000 * index + place
        scheduler.add(sequence)
    return most_running(scheduler) == count and not scheduler.counters.preemptions.total()


def most_running(scheduler: Scheduler) -> int:
    """At once, of all that is waiting; 0 if something never can."""
    most = 0
    while scheduler.has_work:
        plan = scheduler.schedule()
        if not plan.decodes and not plan.prefills:
            return 0
        most = max(most, len(scheduler.running))
        scheduler.update(plan, [7] * len(plan.takers))
        scheduler.check_integrity()
    return most


@settings(deadline=None, max_examples=150)
@given(
    num_blocks=st.integers(4, 60),
    prompt=st.integers(1, 40),
    output=st.integers(1, 24),
    shared=st.sampled_from([0, 0, 3, 8, 17]),
    watermark=st.sampled_from([0.0, 0.01, 0.2]),
)
def test_as_many_fit_as_the_scheduler_takes(
    num_blocks: int, prompt: int, output: int, shared: int, watermark: float
) -> None:
    request = Request(prompt, output, min(shared, prompt))
    count = capacity.requests_that_fit(num_blocks, 4, request, watermark_ratio=watermark)
    assume(blocks_of(max(shared, 1), 4) <= num_blocks)
    if count:
        assert all_run_at_once(num_blocks, request, count, watermark)
    assert not all_run_at_once(num_blocks, request, count + 1, watermark)


def test_requests_that_fit_by_hand() -> None:
    # 100 blocks of 16; 100 + 29 − 1 tokens are 8 blocks, 7 of them the prompt's; a watermark of 1.
    assert capacity.requests_that_fit(100, 16, Request(100, 29)) == 100 // 8
    # The prompts bind where answers are short: 7 blocks each, one block stays free.
    assert capacity.requests_that_fit(98, 16, Request(112, 1)) == 97 // 7
    # 64 of the 100 tokens are 4 blocks that all hold together.
    assert capacity.requests_that_fit(100, 16, Request(100, 29, 64)) == 96 // 4
    assert capacity.requests_that_fit(7, 16, Request(100, 29)) == 0
    # Without paging each reserves 2,048 tokens of 1 KiB.
    assert capacity.contiguous_requests_that_fit(2**30, 1024, 2048) == 512


def test_a_window_gives_back_what_is_behind_it() -> None:
    # 1,000 + 3,000 tokens are 250 blocks; a window of 256 holds 16 and the one that it moves into,
    # but the prompt had 63.
    request = Request(1000, 3001)
    assert capacity.request_blocks(request, 16) == 250
    assert capacity.request_blocks(request, 16, 256) == 63
    assert capacity.request_blocks(request, 16, 2048) == 129


@given(
    context=st.integers(1, 30_000), more=st.integers(0, 2000),
    kv=st.sampled_from(["auto", "int8"]), name=st.sampled_from(["llama-3.2-1b", "qwen3-8b"]),
)  # fmt: skip
def test_a_longer_context_never_needs_fewer_bytes(
    context: int, more: int, kv: str, name: str
) -> None:
    layout = kv_layout(known(name), kv)
    for left, right in (
        (Request(context, 9), Request(context + more, 9)),
        (Request(context, 9), Request(context, 9 + more)),
    ):
        bytes_of = [
            capacity.request_blocks(each, layout.block_size) * layout.block_bytes
            for each in (left, right)
        ]
        assert bytes_of[0] <= bytes_of[1]
        fits = [capacity.requests_that_fit(5000, 16, each) for each in (left, right)]
        assert fits[0] >= fits[1]


def test_memory_of_a_gpu_by_hand() -> None:
    left = capacity.device_kv_bytes(
        1000, 0.9, weight_bytes=500, step_peak_bytes=50, graph_bytes=20, other_bytes=30
    )
    assert left == 300
    assert capacity.host_kv_bytes(1000, 10_000) == 400
    assert capacity.host_kv_bytes(1000, 100) == 100


@pytest.mark.parametrize("name", ["octavo-tiny", "octavo-small"])
def test_known_models_of_the_project_are_the_ones_that_are_shipped(name: str) -> None:
    shipped = find_config(str(Path(__file__).parents[2] / "models" / name))
    assert shipped == find_config(name)
    assert len(known_names()) >= 15
