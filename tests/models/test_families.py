"""Each family against transformers, from folders as transformers writes them: logits of every
position to 1e-4 relative in float32, and equal greedy tokens through the engine."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factories import generate_checked, greedy, make_engine, random_prompts, write_family
from octavo import kernels
from octavo.models.decoder import Decoder
from octavo.models.model_config import ModelConfig, read_model_config
from tests.models.logits import our_logits

FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
YARN_TUNED = {"beta_fast": 3.0, "beta_slow": 0.5, "truncate": False, "rope_theta": 1000.0}
LONGROPE = {
    "rope_type": "longrope", "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0], "long_factor": [1.0, 2.5, 5.0, 9.0, 12.0],
}  # fmt: skip
GEMMA3_ROPE = {
    FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    SLIDING: {"rope_type": "default", "rope_theta": 1e3},
}


@dataclass(frozen=True)
class Case:
    """A toy of factories.FAMILIES, and what its config has beyond it."""

    architecture: str
    overrides: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = (1, 5, 33, 64, 90)  # of prompts, in tokens

    def write(self, folder: Path, **more: Any) -> Any:
        return write_family(folder, self.architecture, **{**self.overrides, **more})


def llama_rope(**parameters: Any) -> Case:
    return Case("LlamaForCausalLM", {"rope_parameters": parameters})


CASES = {
    "llama": Case("LlamaForCausalLM"),
    "llama_tied": Case("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama_gelu": Case("LlamaForCausalLM", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama_linear": llama_rope(rope_type="linear", factor=4.0),
    "llama_llama3": llama_rope(**LLAMA3),
    "llama_yarn": llama_rope(**YARN),
    "llama_yarn_tuned": llama_rope(**YARN, **YARN_TUNED),
    "llama_yarn_mscale": llama_rope(**YARN, mscale=3.0, mscale_all_dim=0.5),
    "llama_yarn_one_mscale": llama_rope(**YARN, mscale=3.0),
    "llama_yarn_attention_factor": llama_rope(**YARN, attention_factor=1.5),
    "llama_yarn_of_max_position": llama_rope(rope_type="yarn", factor=8.0),
    "llama_yarn_original_outside": Case(
        "LlamaForCausalLM", {"rope_parameters": YARN, "original_max_position_embeddings": 16}
    ),
    "mistral": Case("MistralForCausalLM"),
    "mistral_full": Case("MistralForCausalLM", {"sliding_window": None}),
    "mistral_window_of_a_block": Case("MistralForCausalLM", {"sliding_window": 4}),
    "mistral_window_of_itself": Case("MistralForCausalLM", {"sliding_window": 1}),
    "qwen2": Case("Qwen2ForCausalLM"),
    "qwen2_full": Case("Qwen2ForCausalLM", {"use_sliding_window": False}),
    "qwen2_yarn": Case("Qwen2ForCausalLM", {"rope_parameters": YARN}),
    "qwen2_layer_types": Case("Qwen2ForCausalLM", {"layer_types": [SLIDING, FULL, SLIDING]}),
    "qwen3": Case("Qwen3ForCausalLM"),
    "qwen3_sliding": Case(
        "Qwen3ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": [FULL, SLIDING, FULL]},
    ),
    "phi3": Case("Phi3ForCausalLM"),
    "phi3_longrope": Case(
        "Phi3ForCausalLM",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
        lengths=(33, 64, 90),  # all of them long
    ),
    "phi3_longrope_short": Case(
        "Phi3ForCausalLM",
        {
            "rope_parameters": {**LONGROPE, "attention_factor": 1.5},
            "original_max_position_embeddings": 256,
            "sliding_window": None,
        },
    ),
    "gemma2": Case("Gemma2ForCausalLM"),
    "gemma2_tied": Case("Gemma2ForCausalLM", {"tie_word_embeddings": True}),
    "gemma2_uncapped": Case(
        "Gemma2ForCausalLM", {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    ),
    "gemma3": Case("Gemma3ForCausalLM", {"rope_parameters": GEMMA3_ROPE}),
    "gemma3_capped": Case(
        "Gemma3ForCausalLM", {"final_logit_softcapping": 12.0, "tie_word_embeddings": True}
    ),
}  # fmt: skip


@torch.inference_mode()
def their_logits(theirs: Any, tokens: list[int]) -> Tensor:
    return theirs(torch.tensor([tokens]), use_cache=False).logits[0].float()


def distance(ours: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    assert ours.shape == expected.shape
    return float((ours - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_family_equals_transformers(case: Case, tmp_path: Path) -> None:
    theirs = case.write(tmp_path)
    engine = make_engine(tmp_path, max_num_batched_tokens=16, max_num_seqs=3)
    weights = sum(parameter.nbytes for parameter in theirs.parameters())
    assert engine.runner.model.num_bytes == weights
    prompts = random_prompts([*case.lengths])
    for prompt in prompts:
        expected = their_logits(theirs, prompt)
        for chunk in (None, 11):  # 11: chunks begin within blocks of 4, and in windows
            assert distance(our_logits(engine, prompt, chunk), expected) <= 1e-4

    results = generate_checked(engine, prompts, greedy(20))
    assert engine.scheduler.counters.prefill_chunks > len(prompts)
    for prompt, result in zip(prompts, results, strict=True):
        # Greedy step by step: each token is the most likely after those before it.
        expected = their_logits(theirs, prompt + result.token_ids)[len(prompt) - 1 : -1]
        assert result.token_ids == expected.argmax(-1).tolist()
        best, second = expected.topk(2).values.unbind(-1)
        clear = 1e-5 * expected.abs().max()
        assert (best - second).min() > clear, "a tie would leave the token to luck"
    # A model that repeats itself would hide much.
    assert max(len(set(result.token_ids)) for result in results) > 5


Change = Callable[[ModelConfig], ModelConfig]


def windows(change: Callable[[int], int | None]) -> Change:
    return lambda config: replace(
        config,
        sliding_windows=tuple(None if w is None else change(w) for w in config.sliding_windows),
    )


def rope(**changes: Any) -> Change:
    return lambda config: replace(config, rope=replace(config.rope, **changes))


def without(**changes: Any) -> Change:
    return lambda config: replace(config, **changes)


FEATURES: dict[str, tuple[str, Change]] = {
    "activation": ("llama_gelu", without(activation="silu")),
    "window": ("mistral", windows(lambda window: None)),
    "window_longer": ("mistral", windows(lambda window: window + 1)),
    "window_shorter": ("mistral", windows(lambda window: window - 1)),
    "window_in_some_layers": ("qwen2", lambda c: replace(c, sliding_windows=(6, 6, 6))),
    "partial_rotary": ("phi3", rope(rotary_dim=20)),
    "attention_scale": ("gemma2", without(attention_scale=24**-0.5)),
    "attention_softcap": ("gemma2", without(attention_softcap=None)),
    "logits_softcap": ("gemma2", without(logits_softcap=None)),
    "embedding_scale": ("gemma2", without(embedding_scale=None)),
    "norm_offset": ("gemma2", without(norm_offset=0.0)),
    "sliding_rope": ("gemma3", without(sliding_rope=None)),
    "gemma3_linear": ("gemma3", rope(factor=1.0)),
    "linear": ("llama_linear", rope(kind="default")),
    "llama3": ("llama_llama3", rope(kind="default")),
    "yarn": ("llama_yarn", rope(kind="default")),
    "yarn_attention_factor": ("llama_yarn", rope(attention_factor=1.0)),
    "yarn_beta_fast": ("llama_yarn_tuned", rope(beta_fast=32.0)),
    "yarn_beta_slow": ("llama_yarn_tuned", rope(beta_slow=1.0)),
    "yarn_truncate": ("llama_yarn_tuned", rope(truncate=True)),
    "yarn_mscale": ("llama_yarn_mscale", rope(attention_factor=1 + 0.1 * math.log(8))),
    "yarn_original": ("llama_yarn", rope(original_max_position=64)),
    "longrope_attention_factor": ("phi3_longrope", rope(attention_factor=1.0)),
    "longrope_long": ("phi3_longrope", rope(long_factors=tuple(LONGROPE["short_factor"]))),
    "longrope_short": ("phi3_longrope_short", rope(short_factors=(1.0,) * 5)),
}


@pytest.mark.parametrize(("name", "change"), FEATURES.values(), ids=FEATURES.keys())
def test_a_feature_left_out_would_show(name: str, change: Change, tmp_path: Path) -> None:
    theirs = CASES[name].write(tmp_path)
    engine = make_engine(tmp_path)
    prompt = random_prompts([90])[0]
    changed = change(engine.runner.model_config)
    engine.runner.model = Decoder(changed, tmp_path, torch.float32, engine.max_model_len)
    assert distance(our_logits(engine, prompt), their_logits(theirs, prompt)) > 1e-3


@pytest.mark.parametrize("max_model_len", [8, 9, 10, 11])
def test_a_window_about_as_long_as_the_longest_context(max_model_len: int, tmp_path: Path) -> None:
    theirs = CASES["mistral"].write(tmp_path)  # its window is 9
    engine = make_engine(tmp_path, max_model_len=max_model_len)
    prompt = random_prompts([max_model_len])[0]
    assert distance(our_logits(engine, prompt, 3), their_logits(theirs, prompt)) <= 1e-4


def test_the_engines_longest_context_chooses_the_factors_of_longrope(tmp_path: Path) -> None:
    case = replace(CASES["phi3_longrope"], lengths=(20, 60))
    theirs = case.write(tmp_path, original_max_position_embeddings=40)
    short, long = random_prompts([20, 60])
    for max_model_len, prompt, is_equal in ((40, short, True), (41, long[:41], True),
                                            (41, short, False)):  # fmt: skip
        ours = our_logits(make_engine(tmp_path, max_model_len=max_model_len), prompt)
        assert (distance(ours, their_logits(theirs, prompt)) <= 1e-4) == is_equal


def older(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers 4 wrote it."""
    old = {k: v for k, v in config.items() if k not in ("dtype", "rope_parameters", "layer_types")}
    old["torch_dtype"] = config["dtype"]
    rope = dict(config["rope_parameters"])
    if FULL in rope:
        old["rope_local_base_freq"] = rope[SLIDING]["rope_theta"]
        old["sliding_window_pattern"] = 2
        rope = dict(rope[FULL])
    old["rope_theta"] = rope.pop("rope_theta")
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if config["model_type"] == "phi3" and key in rope:
            old[key] = rope.pop(key)
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if config["model_type"] != "gemma3_text":  # which came after the key's renaming
        rope["type"] = rope.pop("rope_type")
    return old


@pytest.mark.parametrize(
    "name",
    ["llama", "llama_linear", "llama_llama3", "llama_yarn_tuned", "mistral", "qwen2", "qwen3",
     "phi3", "phi3_longrope", "gemma2", "gemma3"],
)  # fmt: skip
def test_older_files_mean_the_same(name: str, tmp_path: Path) -> None:
    theirs = CASES[name].write(tmp_path / "new")
    config = json.loads((tmp_path / "new" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(older(config)), encoding="utf-8")
    read_back = type(theirs.config).from_pretrained(tmp_path / "old")
    for rope in (read_back.rope_parameters, read_back.rope_parameters.get(FULL, {})):
        rope.pop("type", None)
    for key in ("rope_parameters", "layer_types", "sliding_window"):
        assert getattr(read_back, key, None) == getattr(theirs.config, key, None)
    assert read_model_config(tmp_path / "old") == read_model_config(tmp_path / "new")


@pytest.mark.parametrize("name", ["mistral", "qwen3", "phi3", "gemma2", "gemma3"])
def test_family_in_bfloat16_is_close_to_transformers(name: str, tmp_path: Path) -> None:
    theirs = CASES[name].write(tmp_path).bfloat16()
    engine = make_engine(tmp_path, dtype="bfloat16")
    for prompt in random_prompts([7, 64]):
        ours = our_logits(engine, prompt, 11)
        assert distance(ours, their_logits(theirs, prompt)) <= 5e-2


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_embeddings_and_norms_in_bfloat16_equal_transformers(name: str, tmp_path: Path) -> None:
    """To the bit: what is rounded where is a family's own."""
    theirs = CASES[name].write(tmp_path).bfloat16().model
    model = make_engine(tmp_path, dtype="bfloat16").runner.model
    tokens = torch.arange(100)
    with torch.inference_mode():
        embedded = theirs.embed_tokens(tokens)
        assert torch.equal(model.embed(tokens), embedded)
        normed = kernels.rms_norm(embedded, model.layers[1].input_norm, 1e-5)
        assert torch.equal(normed, theirs.layers[1].input_layernorm(embedded))
