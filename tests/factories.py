"""Small real things for tests: checkpoints with random weights, engines, sequences."""

import json
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from octavo.config import make_config
from octavo.engine import Engine
from octavo.execution.logprobs import TokenLogprobs
from octavo.generation import GenerationRequest, TokenOutput
from octavo.quantization.kv import KVLayout, layer_formats
from octavo.sampling_params import SamplingParams, parse
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.sequence import FinishReason, ScheduledSequence, Sequence, StepPlan

VOCAB = 512

TOY_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


def toy_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of `config` under Hugging Face's names, large enough that the next token
    depends on the whole context. (With a tied head it is often the last token again.)"""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, std: float = 0.15) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * std

    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q_size, kv_size = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    tensors = {
        "model.embed_tokens.weight": random(config["vocab_size"], hidden, std=0.4),
        "model.norm.weight": 1 + random(hidden),
    }
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = random(config["vocab_size"], hidden, std=0.4)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        matrices = {
            "self_attn.q_proj": (q_size, hidden, config["attention_bias"]),
            "self_attn.k_proj": (kv_size, hidden, config["attention_bias"]),
            "self_attn.v_proj": (kv_size, hidden, config["attention_bias"]),
            "self_attn.o_proj": (hidden, q_size, config["attention_bias"]),
            "mlp.gate_proj": (inner, hidden, config["mlp_bias"]),
            "mlp.up_proj": (inner, hidden, config["mlp_bias"]),
            "mlp.down_proj": (hidden, inner, config["mlp_bias"]),
        }
        for part, (out, width, bias) in matrices.items():
            tensors[f"{name}.{part}.weight"] = random(out, width)
            if bias:
                tensors[f"{name}.{part}.bias"] = random(out)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{name}.{norm}.weight"] = 1 + random(hidden)
    return tensors


def write_checkpoint(folder: Path, shards: int = 1, seed: int = 0, **overrides: Any) -> Path:
    """A Hugging Face folder with a toy model; `overrides` change its config.json."""
    config = {**TOY_CONFIG, **overrides}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    dtype = getattr(torch, config["torch_dtype"])
    tensors = {name: t.to(dtype).contiguous() for name, t in toy_tensors(config, seed).items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[shard::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return folder


# What makes each family itself, in toy sizes: windows far shorter than a context, caps that bite.
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"head_dim": 24, "attention_bias": True, "mlp_bias": True},
    "MistralForCausalLM": {"head_dim": 24, "sliding_window": 9},
    "Qwen2ForCausalLM": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "Qwen3ForCausalLM": {"head_dim": 24, "attention_bias": True},
    "Phi3ForCausalLM": {"rope_parameters": {"partial_rotary_factor": 0.5}, "sliding_window": 13},
    "Gemma2ForCausalLM": {
        "head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 7,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 12.0,
    },
    "Gemma3ForCausalLM": {
        "head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}  # fmt: skip


def write_family(folder: Path, architecture: str, **overrides: Any) -> Any:
    """A checkpoint folder as transformers writes it, and transformers' own model of it: a toy
    of FAMILIES with `overrides` in its config. No weight stays at the 0 or 1 of a new model."""
    import transformers

    model_class = getattr(transformers, architecture)
    config = {
        "vocab_size": VOCAB, "hidden_size": 80, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        **FAMILIES[architecture], **overrides,
    }  # fmt: skip
    # Only eager attention has Gemma 2's softcap.
    model = model_class(model_class.config_class(**config, attn_implementation="eager")).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Small embeddings, so that a tied head does not choose the last token again.
            spread = {"model.embed_tokens.weight": 0.05, "lm_head.weight": 0.4}.get(name, 0.15)
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(parameter + noise if "norm" in name else noise)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return model


def make_engine(folder: Path, *, num_blocks: int | None = None, **settings: Any) -> Engine:
    """An engine that the test steps itself. `num_blocks` fixes the pool's size."""
    own = {
        "dtype": "float32", "num_threads": 1, "block_size": 4, "device": "cpu",
        "quality_gate": "off",  # random weights have no quality to lose
    }  # fmt: skip
    settings = {**own, **settings}
    if num_blocks is not None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        formats = layer_formats(
            settings.get("kv_cache_dtype", "auto"), settings.get("kv_cache_skip_layers", ()),
            config["num_hidden_layers"], settings["dtype"],
        )  # fmt: skip
        layout = KVLayout(
            formats, settings["block_size"], config["num_key_value_heads"], config["head_dim"]
        )
        settings["kv_cache_bytes"] = num_blocks * layout.block_bytes
    return Engine(make_config(model=folder, **settings))


def greedy(max_tokens: int, **more: Any) -> SamplingParams:
    return parse({"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True, **more})


def random_prompts(lengths: list[int], seed: int = 0, vocab: int = VOCAB) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]


@dataclass(slots=True)
class Recorder:
    """A sink that keeps what it is given."""

    request_id: int = -1
    outputs: list[TokenOutput] = field(default_factory=list)

    def __call__(self, output: TokenOutput) -> None:
        self.outputs.append(output)

    @property
    def token_ids(self) -> list[int]:
        return [o.token_id for o in self.outputs if o.token_id is not None]

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        return [o.logprobs for o in self.outputs if o.logprobs is not None]

    @property
    def finishes(self) -> list[FinishReason]:
        return [o.finish_reason for o in self.outputs if o.finish_reason is not None]

    @property
    def error(self) -> str | None:
        return self.outputs[-1].error

    def of(self, index: int) -> "Recorder":
        """What one of the n sequences got."""
        return Recorder(self.request_id, [o for o in self.outputs if o.index == index])


def submit(engine: Engine, prompt: list[int], params: SamplingParams) -> Recorder:
    recorder = Recorder()
    request = GenerationRequest(prompt, params, recorder)
    recorder.request_id = request.request_id
    engine.submit(request)
    return recorder


def step_checked(engine: Engine) -> bool:
    """One step, and the scheduler's invariants after it."""
    worked = engine.step()
    engine.scheduler.check_integrity()
    return worked


def run_to_end(engine: Engine, max_steps: int = 3000) -> int:
    """Steps until there is no work; every block must be free then. Returns the steps."""
    for steps in range(max_steps):
        if not step_checked(engine):
            assert engine.scheduler.allocator.num_used == 0
            return steps
    raise AssertionError(f"still at work after {max_steps} steps")


def generate_checked(
    engine: Engine,
    prompts: Rows[list[int]],
    params: SamplingParams | Rows[SamplingParams],
    joins_before_step: Rows[int] | None = None,
) -> list[Recorder]:
    """What each prompt gets, submitted at once or before the given steps, in rising order.
    The scheduler's invariants hold after every step, and each request ends exactly once."""
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    joins = joins_before_step or [0] * len(prompts)
    recorders: list[Recorder] = []
    for prompt, own, join in zip(prompts, each, joins, strict=True):
        while engine.stats.steps < join:
            assert step_checked(engine), "nothing is left to join"
        recorders.append(submit(engine, prompt, own))
    run_to_end(engine)
    for recorder, own in zip(recorders, each, strict=True):
        for choice in map(recorder.of, range(own.n)):
            assert len(choice.finishes) == 1 and choice.outputs[-1].finish_reason
    return recorders


def make_scheduler(num_blocks: int = 64, **settings: Any) -> Scheduler:
    defaults = {
        "block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 32, "watermark_ratio": 0.0,
        "enable_prefix_caching": False,  # prompts of `make_sequence` all begin alike
    }  # fmt: skip
    return Scheduler(num_blocks=num_blocks, **{**defaults, **settings})


def make_sequence(
    request_id: int, prompt: int = 8, arrival_s: float | None = None, **params: Any
) -> Sequence:
    own = greedy(**{"max_tokens": 8, **params})
    sequence = Sequence(
        request_id=request_id,
        token_ids=list(range(10, 10 + prompt)),
        params=own,
        arrival_s=float(request_id if arrival_s is None else arrival_s),
        max_len=prompt + own.max_tokens,
        stop_token_ids=frozenset(own.stop_token_ids),
    )
    for _ in range(1, own.n):
        sequence.add_fork(own)
    return sequence


def all_scheduled(plan: StepPlan) -> list[ScheduledSequence]:
    """What the plan computes, decodes first, each with its number of tokens."""
    return [*(ScheduledSequence(sequence, 1) for sequence in plan.decodes), *plan.prefills]
