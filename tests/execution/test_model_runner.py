"""What the runner settles at load, and that one broken sequence does not break the others."""

import logging
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from factories import (
    Recorder,
    generate_checked,
    greedy,
    make_engine,
    random_prompts,
    run_to_end,
    submit,
    write_checkpoint,
)
from octavo.config import make_config
from octavo.engine import Engine
from octavo.errors import ConfigError
from octavo.execution.model_runner import ModelRunner, supports_fp8
from octavo.scheduling.sequence import FinishReason, ScheduledSequence, Sequence, StepPlan

BLOCK_BYTES = 2 * 2 * 2 * 16 * 4 * 4  # keys and values, layers, heads, dim, float32, tokens
POISON = 7


def runner(folder: Path, **settings: object) -> ModelRunner:
    settings = {"dtype": "float32", "block_size": 4, "num_threads": 1, **settings}
    return ModelRunner(make_config(model=folder, **settings))


def sequence_of(tokens: list[int]) -> Sequence:
    return Sequence(1, tokens, greedy(1), arrival_s=0.0, max_len=len(tokens) + 1)


def test_pool_is_what_kv_cache_bytes_holds(toy_folder: Path) -> None:
    loaded = runner(toy_folder, kv_cache_bytes=70 * BLOCK_BYTES + 5, max_model_len=200)
    assert loaded.kv_cache.num_blocks == 70
    assert loaded.kv_cache.num_bytes == 70 * BLOCK_BYTES
    assert loaded.max_model_len == 200


def test_pool_is_for_every_sequence_at_its_longest_by_default(toy_folder: Path) -> None:
    loaded = runner(toy_folder, max_num_seqs=3, max_model_len=101)
    assert loaded.kv_cache.num_blocks == 3 * 26
    assert runner(toy_folder, max_num_seqs=3).kv_cache.num_blocks == 3 * 64
    assert loaded.dtype == torch.float32


def test_context_is_the_models_own_by_default(toy_folder: Path) -> None:
    assert runner(toy_folder).max_model_len == 256


def test_context_is_cut_to_the_pool_with_a_warning(
    toy_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = runner(toy_folder, kv_cache_bytes=10 * BLOCK_BYTES)
    assert (loaded.max_model_len, loaded.kv_cache.num_blocks) == (40, 10)
    assert "from 256 to 40 tokens" in caplog.text


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"max_model_len": 257}, ["max_model_len = 257", "max_position_embeddings is 256"]),
        (
            {"max_model_len": 41, "kv_cache_bytes": 10 * BLOCK_BYTES},
            ["max_model_len = 41", f"{10 * BLOCK_BYTES} bytes", "40 tokens", "kv_cache_bytes"],
        ),
        (
            {"kv_cache_bytes": BLOCK_BYTES - 1},
            [f"kv_cache_bytes = {BLOCK_BYTES - 1}", "block of 4 tokens", str(BLOCK_BYTES)],
        ),
        ({"kv_cache_bytes": 2**62}, [f"kv_cache_bytes = {2**62}", "available"]),
    ],
    ids=["model_len", "pool", "block", "memory"],
)
def test_memory_that_cannot_be_is_refused(
    toy_folder: Path, settings: dict[str, int], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        runner(toy_folder, **settings)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.*no such folder"):
        runner(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_the_checkpoints_unless_set(tmp_path: Path, dtype: str) -> None:
    folder = write_checkpoint(tmp_path / "toy", torch_dtype=dtype)
    assert runner(folder, dtype="auto").dtype == getattr(torch, dtype)
    other = runner(folder, dtype="float32")
    assert other.dtype == other.kv_cache.layers[0].keys.dtype == torch.float32


def test_a_folder_may_be_a_link(toy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(toy_folder)
    assert runner(tmp_path / "link").max_model_len == 256


def write_poisoned(folder: Path) -> Path:
    """A checkpoint in which whatever sees token POISON is not a number from then on."""
    write_checkpoint(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][POISON] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def poisoned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_poisoned(tmp_path_factory.mktemp("poisoned"))


def healthy_prompts() -> list[list[int]]:
    return [[t if t != POISON else POISON + 1 for t in p] for p in random_prompts([9, 30, 2, 17])]


def assert_ended_by_its_logits(recorder: Recorder) -> None:
    assert recorder.finishes == [FinishReason.ERROR]
    assert recorder.token_ids == []
    assert recorder.error == "the model's logits are not finite"


def make_small(folder: Path) -> Engine:
    return make_engine(folder, num_blocks=50, max_model_len=80, max_num_batched_tokens=32)


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("length", [1, 40])
def test_logits_that_are_not_finite_end_only_their_request(
    poisoned_folder: Path, place: int, length: int
) -> None:
    prompts = healthy_prompts()
    params = greedy(16, logprobs=3)
    expected = [generate_checked(make_small(poisoned_folder), [p], params)[0] for p in prompts]
    prompts.insert(place, [POISON] * length)
    results = generate_checked(make_small(poisoned_folder), prompts, params)
    assert_ended_by_its_logits(results.pop(place))
    assert [r.token_ids for r in results] == [r.token_ids for r in expected]
    assert all(r.finishes == [FinishReason.LENGTH] for r in results)


def test_logits_that_are_not_finite_end_a_request_at_its_last_token(poisoned_folder: Path) -> None:
    engine = make_small(poisoned_folder)
    assert_ended_by_its_logits(generate_checked(engine, [[POISON] * 3], greedy(1))[0])


def test_blocks_that_held_what_is_not_a_number_can_be_used_again(poisoned_folder: Path) -> None:
    params = greedy(16)
    expected = [
        generate_checked(make_small(poisoned_folder), [p], params)[0] for p in healthy_prompts()
    ]
    engine = make_small(poisoned_folder)
    bad = [submit(engine, [POISON] * 60, params) for _ in range(3)]
    run_to_end(engine)
    for recorder in bad:
        assert_ended_by_its_logits(recorder)
    assert any(layer.keys.isnan().any() for layer in engine.runner.kv_cache.layers)
    results = generate_checked(engine, healthy_prompts(), params)
    assert [r.token_ids for r in results] == [r.token_ids for r in expected]
    assert engine.stats.generation_tokens == 16 * len(results)


def test_fp8_is_refused_where_the_device_has_none(toy_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"kv_cache_dtype = 'fp8': the cpu .* use 'int8'"):
        runner(toy_folder, kv_cache_dtype="fp8")


def test_supports_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not supports_fp8(torch.device("cpu"))
    for capability, expected in (((8, 6), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert supports_fp8(torch.device("cuda")) == expected


def test_what_is_not_finite_shows_through_a_quantized_cache(poisoned_folder: Path) -> None:
    engine = make_engine(poisoned_folder, num_blocks=50, max_model_len=80, kv_cache_dtype="int8")
    bad, good = generate_checked(engine, [[POISON] * 9, healthy_prompts()[0]], greedy(4))
    assert_ended_by_its_logits(bad)
    assert good.finishes == [FinishReason.LENGTH]


def test_the_log_tells_the_blocks_size(toy_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        loaded = runner(toy_folder, block_size="auto", block_bytes="16KiB", max_num_seqs=1)
    assert loaded.block_size == loaded.kv_cache.block_size == 64
    assert loaded.kv_cache.block_bytes == 2 * 16384
    assert "64 tokens, 32768 bytes, in 2 layers of float32 with 16384 bytes" in caplog.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight_format": "int8"}, "rounded to int8, 8 bits per weight, lm_head int8"),
        (
            {"weight_format": "w4a8", "weight_group_size": 32},
            "rounded to w4a8 in groups of 32, 4.5 bits per weight, lm_head w8a8",
        ),
    ],
    ids=["int8", "w4a8"],
)
def test_the_log_says_what_weights_are_rounded_to(
    toy_folder: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, object], said: str
) -> None:
    with caplog.at_level(logging.INFO):
        runner(toy_folder)
        assert "rounded" not in caplog.text
        runner(toy_folder, **settings)
    assert said in caplog.text


def test_a_lm_head_of_16_bits_is_one_of_the_computation(toy_folder: Path) -> None:
    settings = {"weight_format": "int8", "lm_head_format": "bfloat16"}
    with pytest.raises(ConfigError, match=r"lm_head_format = 'bfloat16': .* computes in float32"):
        runner(toy_folder, **settings)
    loaded = runner(toy_folder, dtype="bfloat16", **settings)
    assert loaded.model.lm_head.num_bytes == 2 * 512 * 64


@pytest.mark.parametrize("num_threads, tokens", [(1, 40), (3, 40), (2, 1300)])
def test_kernels_tell_their_phases_when_asked(
    tmp_path: Path, num_threads: int, tokens: int
) -> None:
    """1,300 tokens are computed in three parts."""
    folder = write_checkpoint(tmp_path, max_position_embeddings=2048)
    loaded = runner(folder, num_threads=num_threads, max_num_batched_tokens=2048)
    library = loaded.library
    assert library is not None
    found = []
    for is_timed in (False, True, True):
        library.is_timed = is_timed
        sequence = sequence_of(random_prompts([tokens])[0])
        sequence.block_table = list(range(-(-tokens // 4)))
        began_ns = time.perf_counter_ns()
        sampled = loaded.run(StepPlan([], [ScheduledSequence(sequence, tokens)]))
        elapsed_ns = time.perf_counter_ns() - began_ns
        found.append((sampled.token_ids, elapsed_ns, library.take_phases()))
    (plain, _, nothing), *timed = found
    assert nothing is None and library.take_phases() is None
    parts = 3 if tokens == 1300 else 1
    layer = ["norm", "qkv", "store", "attend", "output", "norm", "gate_up", "down"]
    for token_ids, elapsed_ns, phases in timed:
        assert token_ids == plain and phases is not None
        # Only a part that ends the prompt has logits.
        ends = [["norm", "lm_head"] if part == parts - 1 else [] for part in range(parts)]
        expected = [name for end in ends for name in ["embed", *layer * 2, *end]]
        assert [name for name, _, _ in phases.ranges] == expected
        assert all(begin <= end for _, begin, end in phases.ranges)
        lasted_ns = sum(end - begin for _, begin, end in phases.ranges)
        assert 0 < lasted_ns <= elapsed_ns
        assert set(phases.spent_ns) == set(phases.waited_ns) == {"embed", "lm_head", *layer}
        assert 0 < sum(phases.spent_ns.values()) <= num_threads * elapsed_ns
        for name, spent_ns in phases.spent_ns.items():
            assert 0 <= phases.waited_ns[name] <= spent_ns
        if num_threads == 1:
            assert sum(phases.spent_ns.values()) == pytest.approx(lasted_ns, rel=0.05)
            assert not any(phases.waited_ns.values())
