"""Batched = alone with quantized weights.

Weights are rounded once, at load. Where inputs are too, a batch's other rounding (1e-7) now and
then takes one over the edge of a step, as with int8 KV memory: then log probabilities are near,
not equal.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from equivalences import Case, assert_equal
from factories import Recorder, generate_checked, random_prompts
from tests.equivalence.test_quantized import assert_near

Compare = Callable[[Recorder, Recorder], None]


@pytest.mark.parametrize(
    ("weight_format", "group_size", "compare"),
    [("int8", 128, assert_equal), ("int4", 32, assert_equal), ("w8a8", 128, assert_near),
     ("w4a8", 32, assert_near)],
)  # fmt: skip
def test_batched_equals_alone(
    toy_folder: Path, weight_format: str, group_size: int, compare: Compare
) -> None:
    weights = {"weight_format": weight_format, "weight_group_size": group_size}
    prompts = random_prompts([33, 3, 17, 1, 28, 8])
    case = Case(toy_folder, "float32", prompts, 16, 8, compare, settings=weights)
    engine = case.engine(max_num_seqs=4, max_num_batched_tokens=16)
    case.assert_as_alone(generate_checked(engine, prompts, case.params, [0, 0, 1, 2, 3, 5]))
    assert engine.stats.busy_s["mixed"] > 0
    assert engine.scheduler.counters.prefill_chunks > len(prompts)
    plain = Case(toy_folder, "float32", prompts, 16, 8, compare).alone
    assert plain[0].logprobs[0].logprob != case.alone[0].logprobs[0].logprob
