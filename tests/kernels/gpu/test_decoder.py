"""A whole engine on the GPU's operators: the tokens of the reference ones.

Its steps are launched as on a GPU, decodes in padded rows. Without a GPU a graph is the call that
it would capture, and the interpreter is slow: a small model, short prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from factories import Recorder, generate_checked, make_engine, random_prompts, write_checkpoint
from octavo import kernels
from octavo.config import make_config
from octavo.engine import Engine
from octavo.execution.device_runner import DeviceRunner
from octavo.execution.kv_cache import KVCache
from octavo.kernels import gpu
from octavo.models.decoder import Decoder
from octavo.sampling_params import parse

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROMPTS = random_prompts([5, 17, 1, 9])
KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.1, "top_k": 40, "top_p": 0.9},
    {"temperature": 0, "logprobs": 3},
    {"temperature": 0, "repetition_penalty": 1.2},
]


def run(engine: Engine) -> list[Recorder]:
    each = [
        parse({**kind, "seed": index, "max_tokens": 6 - index, "ignore_eos": True})
        for index, kind in enumerate(KINDS)
    ]
    return generate_checked(engine, PROMPTS, each)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kv_cache_dtype": "int8"},
        {"weight_format": "int4", "weight_group_size": 32},
        {"weight_format": "int8"},
    ],
    ids=["plain", "int8 KV", "int4", "int8"],
)
def test_an_engine_on_gpu_operators_gives_the_references_tokens(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = write_checkpoint(
        tmp_path / "model", num_hidden_layers=1, head_dim=16, intermediate_size=64
    )
    common = {"dtype": "float32", "block_size": 16, "kernels": "reference", "num_blocks": 30,
              "max_num_batched_tokens": 16, "max_num_seqs": 4, "max_model_len": 64,
              **settings}  # fmt: skip
    expected = run(make_engine(folder, **common))
    engine = make_engine(folder, **common, run_ahead=True)
    own = engine.runner
    model = Decoder(
        own.model_config, folder, torch.float32, engine.max_model_len, own.weight_format,
        operators=gpu, device=DEVICE,
    )  # fmt: skip
    own.kv_cache = KVCache.allocate(own.kv_cache.layout, own.kv_cache.num_blocks, DEVICE, gpu)
    runner = DeviceRunner(
        model, own.kv_cache, gpu, max_num_seqs=4, max_model_len=engine.max_model_len
    )
    runner.capture()
    own.launch = runner.launch  # type: ignore[method-assign]
    got = run(engine)
    assert [each.token_ids for each in got] == [each.token_ids for each in expected]
    for mine, other in zip(got[2].logprobs, expected[2].logprobs, strict=True):
        assert abs(mine.logprob - other.logprob) < 1e-4
    assert len(set(got[0].token_ids)) > 2
    assert engine.scheduler.counters.prefill_chunks > len(PROMPTS)


def test_the_operators_are_all_there() -> None:
    missing = [name for name in _names() if not callable(getattr(gpu, name, None))]
    assert not missing and all(callable(getattr(kernels, name)) for name in _names())
    assert make_config(model=Path(), device="cuda:1").device == "cuda:1"


def _names() -> list[str]:
    return [name for name in vars(kernels.operators.Operators) if not name.startswith("_")]
