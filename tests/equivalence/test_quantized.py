"""The equivalences with int8 KV memory.

What is stored of a token depends on its own keys and values alone, and attention reads nothing
else: the blocks' bytes do not tell how a prompt was cut. But a matrix product rounds differently in
another batch, by 1e-7, which now and then takes a number over the edge of a step of 1/127. So
log probabilities are equal to 0.02 here, not to 1e-4: measured, float32, at most 0.004.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from equivalences import Case, assert_close
from factories import Recorder, generate_checked, step_checked, submit
from octavo.engine import Engine

TOLERANCE = 0.02


def assert_near(got: Recorder, expected: Recorder) -> None:
    """Close; and as long as the tokens are the same, so are their log probabilities."""
    assert_close(got, expected)
    assert got.finishes == expected.finishes
    for mine, other in zip(got.logprobs, expected.logprobs, strict=True):
        if mine.top[0][0] != other.top[0][0]:
            break
        assert abs(mine.logprob - other.logprob) <= TOLERANCE


@pytest.fixture(scope="session")
def quantized_case(exact_case: Case) -> Case:
    return replace(exact_case, kv_cache_dtype="int8", compare=assert_near)


def test_the_cache_is_quantized(quantized_case: Case, exact_case: Case) -> None:
    engine = quantized_case.engine()
    assert {layer.keys.dtype for layer in engine.runner.kv_cache.layers} == {torch.int8}
    differences = [
        abs(mine.logprob - other.logprob)
        for got, expected in zip(quantized_case.alone, exact_case.alone, strict=True)
        for mine, other in zip(got.logprobs, expected.logprobs, strict=True)
    ]
    assert max(differences) > 1e-3


@pytest.mark.parametrize("max_num_seqs", [5, 32])
def test_batched_equals_alone(quantized_case: Case, max_num_seqs: int) -> None:
    case = quantized_case
    engine = case.engine(max_num_seqs=max_num_seqs)
    joins = [index // 2 for index in range(len(case.prompts))]
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params, joins))
    assert engine.stats.busy_s["mixed"] > 0


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_chunked_prefill_equals_whole(quantized_case: Case, chunk: int) -> None:
    case = quantized_case
    engine = case.engine(max_num_batched_tokens=chunk, max_num_seqs=1)
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    assert engine.scheduler.counters.prefill_chunks > len(case.prompts)


def test_warm_equals_cold(quantized_case: Case) -> None:
    case = quantized_case
    engine = case.engine()
    for _ in range(2):
        case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    assert engine.scheduler.counters.prefix_hit_tokens.total() > 0


def test_preempted_equals_alone(quantized_case: Case) -> None:
    case = quantized_case
    engine = case.engine(num_blocks=-(-case.longest // 4) + 6)
    case.assert_as_alone(generate_checked(engine, case.prompts, case.params))
    assert engine.scheduler.counters.preemptions.total() > 0


@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_block_size_changes_nothing(quantized_case: Case, block_size: int) -> None:
    engine = quantized_case.engine(block_size=block_size, num_blocks=1600 // block_size)
    results = generate_checked(engine, quantized_case.prompts, quantized_case.params)
    quantized_case.assert_as_alone(results)


@pytest.mark.parametrize(
    ("kv_cache_dtype", "more"),
    [("float16", {}), ("bfloat16", {}), ("int8", {"kv_cache_skip_layers": (0,)})],
)
def test_every_format_serves(
    exact_case: Case, kv_cache_dtype: str, more: dict[str, object]
) -> None:
    """Cast formats and mixed ones: batched in chunks as alone."""
    case = replace(exact_case, kv_cache_dtype=kv_cache_dtype, compare=assert_near)

    def run(prompts: list[list[int]], **settings: object) -> list[Recorder]:
        return generate_checked(case.engine(**settings, **more), prompts, case.params)

    together = run(case.prompts, max_num_batched_tokens=16, max_num_seqs=8)
    for prompt, got in zip(case.prompts, together, strict=True):
        assert_near(got, run([prompt])[0])


Moves = Callable[[Engine, list[int], list[int]], None]


def through_the_host(engine: Engine, sources: list[int], targets: list[int]) -> None:
    rows = engine.runner.kv_cache.read_blocks(sources)
    engine.runner.kv_cache.write_blocks(targets, [row.tobytes() for row in rows])


def by_copy(engine: Engine, sources: list[int], targets: list[int]) -> None:
    engine.runner.kv_cache.copy_blocks(list(zip(sources, targets, strict=True)))


@pytest.mark.parametrize("move", [through_the_host, by_copy])
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_moved_blocks_equal_their_originals(
    exact_case: Case, kv_cache_dtype: str, move: Moves
) -> None:
    """A sequence whose blocks move to other ones after its prompt goes on as if they had not."""
    case = replace(exact_case, kv_cache_dtype=kv_cache_dtype)
    prompt, expected = case.prompts[0], case.alone[0]
    engine = case.engine(enable_prefix_caching=False)
    moved = False
    recorder = submit(engine, prompt, case.params)
    while step_checked(engine):
        if not moved and len(recorder.token_ids) == 5:
            (sequence,) = engine.scheduler.running
            sources = list(sequence.block_table)
            targets = engine.scheduler.allocator.allocate(len(sources))
            move(engine, sources, targets)
            sequence.block_table[:] = targets
            engine.scheduler.allocator.free(sources)
            # What is left behind must not be read any more.
            rows = np.full((len(sources), engine.runner.kv_cache.block_bytes), 0xFF, np.uint8)
            engine.runner.kv_cache.write_blocks(sources, rows)
            moved = True
    assert moved
    assert recorder.token_ids == expected.token_ids
    assert [x.logprob for x in recorder.logprobs] == [x.logprob for x in expected.logprobs]
