"""Every native path = the reference operators, whatever the engine does with a sequence.

The other equivalences run on the fastest path that this processor has. Here each path, AMX's with
its tiles emulated, is held against the plain torch of the reference: in batches, in chunks, with
prefix cache, preempted, swapped; float32 token for token, bfloat16 by `assert_close`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from torch import Tensor

import octavo.kernels.cpu
from equivalences import Case, assert_close, assert_equal, pool_blocks
from factories import Recorder, generate_checked, greedy, make_engine, random_prompts, write_family
from native_paths import EMULATED, EMULATION, PATHS
from octavo.engine import Engine
from octavo.execution.forward_batch import ForwardBatch
from octavo.execution.kv_cache import KVCache
from octavo.kernels.cpu.build import build_library


@pytest.fixture(params=PATHS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param != EMULATED:
        yield str(request.param)
        return
    emulating = partial(build_library, options=EMULATION)
    monkeypatch.setattr(octavo.kernels.cpu, "build_library", emulating)
    yield "amx"


def run(case: Case, engine: Engine) -> list[Recorder]:
    results = generate_checked(engine, case.prompts, case.params)
    case.assert_as_alone(results)
    return results


@pytest.fixture(scope="session")
def reference(case: Case) -> Case:
    """What the reference operators give each prompt alone."""
    expected = replace(case, settings={"kernels": "reference"})
    assert expected.engine().runner.kernels == "reference"
    return expected


def test_paths_equal_the_reference(reference: Case, isa: str) -> None:
    settings = {"kernels": isa, "num_threads": 2}
    whole = reference.engine(**settings)
    assert whole.runner.kernels == isa
    run(reference, whole)
    run(reference, whole)  # from the prefix cache
    counters = whole.scheduler.counters
    assert counters.prefix_hit_tokens.total() > 0

    tight = reference.engine(
        **settings, num_blocks=pool_blocks(reference, 0.15), max_num_batched_tokens=40,
        preemption="recompute",
    )  # fmt: skip
    run(reference, tight)
    assert tight.scheduler.counters.preemptions["recompute"] > 0
    assert tight.scheduler.counters.prefill_chunks > len(reference.prompts)

    swapping = reference.engine(
        **settings, num_blocks=pool_blocks(reference, 0.15), preemption="swap",
        kv_tiers={"host_bytes": 2**26},
    )  # fmt: skip
    run(reference, swapping)
    assert swapping.scheduler.counters.preemptions["swap"] > 0


# Sizes of heads that models have, and shapes that fit no vector.
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "64": (
        "Phi3ForCausalLM",
        dict(hidden_size=128, num_attention_heads=2, num_key_value_heads=2),
    ),
    "80": (
        "Qwen3ForCausalLM",
        dict(hidden_size=160, num_attention_heads=6, num_key_value_heads=3, head_dim=80),
    ),
    "96": (
        "Gemma2ForCausalLM",
        dict(hidden_size=96, num_attention_heads=2, num_key_value_heads=2, head_dim=96),
    ),
    "128": (
        "LlamaForCausalLM",
        dict(hidden_size=125, num_attention_heads=5, num_key_value_heads=1, head_dim=128),
    ),
    "odd": (
        "LlamaForCausalLM",
        dict(
            hidden_size=75, num_attention_heads=3, num_key_value_heads=1, head_dim=22,
            intermediate_size=101, vocab_size=333,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_models(shape: str, isa: str, dtype: str, tmp_path: Path) -> None:
    architecture, sizes = SHAPES[shape]
    write_family(tmp_path / "model", architecture, **sizes)
    vocabulary = sizes.get("vocab_size", 512)
    prompts = random_prompts([50, 1, 20, 7], vocab=vocabulary)
    params = greedy(12, logprobs=5)
    results = []
    for kernels in ("reference", isa):
        engine = make_engine(
            tmp_path / "model", dtype=dtype, kernels=kernels, max_num_batched_tokens=45,
            kv_cache_bytes=2**22, block_size=16, max_model_len=80,
        )  # fmt: skip
        results.append(generate_checked(engine, prompts, params))
    for expected, got in zip(*results, strict=True):
        (assert_equal if dtype == "float32" else assert_close)(got, expected)


@contextmanager
def counting_tokens(engine: Engine) -> Iterator[list[int]]:
    """Of each step."""
    steps: list[int] = []
    forward = engine.runner.model.forward

    def counted(batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        steps.append(len(batch.token_ids))
        return forward(batch, kv_cache)

    with patch.object(engine.runner.model, "forward", counted):
        yield steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_of_many_tokens(isa: str, dtype: str, tmp_path: Path) -> None:
    """The native step computes these in parts, whose edges are within prompts and, in the second
    step, behind decodes."""
    source = (Path(octavo.kernels.cpu.__file__).parent / "batch_parts.inl").read_text("utf-8")
    (part_tokens,) = re.findall(r"PART_TOKENS = (\d+);", source)
    assert int(part_tokens) < 700, "a step of 700 tokens must have several parts"
    write_family(tmp_path / "model", "LlamaForCausalLM", max_position_embeddings=1300)
    prompts = random_prompts([300, 2, 255, 1, 1250, 40])
    # Logits of prompts are wanted too, so that parts have none, some and all.
    asked = {"logprobs": 5, "prompt_logprobs": 1}
    params = [greedy(6, logprobs=5), greedy(6, **asked)] * 3
    results = []
    for kernels, budget in (("reference", 700), (isa, 700), (isa, 60)):
        engine = make_engine(
            tmp_path / "model", dtype=dtype, kernels=kernels, max_num_batched_tokens=budget,
            kv_cache_bytes=2**22, block_size=16, num_threads=2,
        )  # fmt: skip
        with counting_tokens(engine) as steps:
            results.append(generate_checked(engine, prompts, params))
        assert max(steps) == budget and engine.stats.busy_s["mixed"] > 0
    expected, whole, chunked = results
    for reference, parts, chunks in zip(expected, whole, chunked, strict=True):
        (assert_equal if dtype == "float32" else assert_close)(parts, reference)
        if isa != "amx":  # there the number of rows chooses between two ways to add
            assert parts.token_ids == chunks.token_ids
            assert [x.logprob for x in parts.logprobs] == [x.logprob for x in chunks.logprobs]
