"""Everything at once: any pool, budget, arrivals, priorities and parameters, each as alone."""

import random
from pathlib import Path
from typing import Any

import pytest

from equivalences import assert_equal
from factories import (
    Recorder,
    generate_checked,
    make_engine,
    random_prompts,
    run_to_end,
    step_checked,
    submit,
)
from octavo.sampling_params import SamplingParams, parse

LONGEST = 120


def random_params(chance: random.Random) -> SamplingParams:
    values: dict[str, Any] = {
        "max_tokens": chance.randint(1, 30),
        "min_tokens": 0,
        "logprobs": 2,
        "priority": chance.randint(1, 3),
        "temperature": chance.choice([0, 0, 0.7, 1.5]),
        "top_k": chance.choice([0, 5, 50]),
        "top_p": chance.choice([1.0, 0.9]),
        "seed": chance.getrandbits(64),
        "ignore_eos": chance.random() < 0.5,
        "stop_token_ids": [chance.randrange(3, 512) for _ in range(chance.choice([0, 30]))],
    }
    values["min_tokens"] = chance.choice([0, values["max_tokens"] // 2])
    return parse(values)


@pytest.mark.parametrize("seed", range(12))
def test_random_load_equals_alone(toy_folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    block_size = chance.choice([1, 2, 4, 16])
    max_num_seqs = chance.randint(1, 8)
    engine = make_engine(
        toy_folder,
        block_size=block_size,
        num_blocks=-(-LONGEST // block_size) + chance.choice([0, 3, 20]),
        max_model_len=LONGEST,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + chance.choice([0, 3, 40]),
        watermark_ratio=chance.choice([0.0, 0.1]),
    )
    lengths = [chance.choice([1, 7, 16, 45, 90]) for _ in range(16)]
    prompts = random_prompts(lengths, seed=seed)
    params = [random_params(chance) for _ in prompts]
    recorders: list[Recorder] = []
    for prompt, own in zip(prompts, params, strict=True):
        recorders.append(submit(engine, prompt, own))
        for _ in range(chance.choice([0, 0, 1, 6])):
            step_checked(engine)
    run_to_end(engine)
    unhurried = make_engine(toy_folder)
    for prompt, own, recorder in zip(prompts, params, recorders, strict=True):
        assert_equal(recorder, generate_checked(unhurried, [prompt], own)[0])
