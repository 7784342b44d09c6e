"""Blocks given back = kept: what lies behind a sliding window is never missed."""

from pathlib import Path

import pytest

from equivalences import assert_equal
from factories import (
    Recorder,
    generate_checked,
    greedy,
    make_engine,
    random_prompts,
    step_checked,
    submit,
    write_family,
)
from octavo.scheduling.sequence import Sequence

PARAMS = greedy(40, logprobs=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("window")
    write_family(folder, "MistralForCausalLM")  # a window of 9 tokens
    return folder


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return random_prompts([60, 3, 33, 9, 47, 1, 10])


@pytest.fixture(scope="module")
def alone(folder: Path, prompts: list[list[int]]) -> list[Recorder]:
    """With blocks as long as the context, none of which ever lies behind a window."""
    return [
        generate_checked(make_engine(folder, block_size=256), [prompt], PARAMS)[0]
        for prompt in prompts
    ]


@pytest.mark.parametrize("budget", [8, 256])
@pytest.mark.parametrize("num_blocks", [26, 200])
def test_given_back_equals_kept(
    folder: Path, prompts: list[list[int]], alone: list[Recorder], budget: int, num_blocks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    engine = make_engine(
        folder, num_blocks=num_blocks, max_num_batched_tokens=budget, max_num_seqs=8,
        max_model_len=104,
    )  # fmt: skip
    most = 0
    give_back = engine.scheduler._give_back

    def counting(sequence: Sequence, num_computed: int) -> None:
        nonlocal most
        give_back(sequence, num_computed)
        most = max(most, sequence.num_given_back)

    monkeypatch.setattr(engine.scheduler, "_give_back", counting)
    for got, expected in zip(generate_checked(engine, prompts, PARAMS), alone, strict=True):
        assert_equal(got, expected)
    assert most == (60 + 39 - 8) // 4, "all but the blocks of the last 8 tokens"


def test_a_long_answer_holds_the_blocks_of_a_window(folder: Path) -> None:
    engine = make_engine(folder, num_blocks=64, enable_prefix_caching=False)
    used = []
    submit(engine, [5] * 100, greedy(100))
    while step_checked(engine):
        used.append(engine.scheduler.allocator.num_used)
    # 9 tokens lie in 3 blocks, or in 4 with the next one's.
    assert max(used[1:]) <= 4 and len(used) == 100


def test_warm_equals_cold(folder: Path, prompts: list[list[int]], alone: list[Recorder]) -> None:
    engine = make_engine(folder, num_blocks=400)
    for _ in range(2):
        for got, expected in zip(generate_checked(engine, prompts, PARAMS), alone, strict=True):
            assert_equal(got, expected)
    assert engine.scheduler.counters.prefix_hit_tokens["pool"] > 100
