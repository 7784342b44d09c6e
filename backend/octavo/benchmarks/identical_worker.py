"""Measures `identical` in a process of its own: `python -m octavo.benchmarks.identical_worker`.

It is given Options, and tells the `settings`, then each `sample`; see `worker`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octavo.benchmarks.identical import CONFIGURATIONS, Configuration, Options, Sample, Settings
from octavo.benchmarks.load import kv_token_bytes, run_load
from octavo.config import make_config
from octavo.engine import Engine
from octavo.errors import ConfigError
from octavo.models.model_config import read_model_config
from octavo.worker import serve

_WATERMARK_RATIO = 0.01
_WARM_UP_TOKENS = 4


def settle(options: Options) -> Settings:
    """Raises ConfigError naming the option, its value and the limit."""
    assert options.model is not None
    model = read_model_config(Path(options.model))
    context = options.context_tokens or model.max_position
    if context > model.max_position:
        raise ConfigError(
            f"--context = {context}: the model's max_position_embeddings is {model.max_position}"
        )
    prompt = options.prompt_tokens or max(1, min(context // 4, context - options.output_tokens))
    if prompt + options.output_tokens > context:
        raise ConfigError(
            f"--prompt-tokens + --output-tokens = {prompt} + {options.output_tokens}: the context "
            f"is {context} tokens"
        )
    context_bytes = context * kv_token_bytes(Path(options.model), options.dtype)
    budget = options.kv_cache_bytes
    if budget is None:
        budget = context_bytes * _contexts_for_all(options, prompt, context)
    if budget < context_bytes:
        raise ConfigError(
            f"--kv-memory = {budget} bytes: at least {context_bytes}, which is one context of "
            f"{context} tokens"
        )
    settled = {
        "dtype": model.dtype if options.dtype == "auto" else options.dtype,
        "prompt_tokens": prompt,
        "context_tokens": context,
        "kv_cache_bytes": budget,
        "context_bytes": context_bytes,
    }
    return Settings(**{**asdict(options), **settled})


def _contexts_for_all(options: Options, prompt: int, context: int) -> int:
    """The fewest whole contexts whose memory, paged, lets all requests run at once: what is left
    of the difference then is how the memory is cut."""
    blocks = options.num_requests * -(-(prompt + options.output_tokens) // options.block_size)
    blocks += 1 + int(blocks * 2 * _WATERMARK_RATIO)
    return -(-blocks * options.block_size // context)


def build_engine(settings: Settings, configuration: Configuration) -> Engine:
    engine = Engine(
        make_config(
            model=settings.model,
            dtype=settings.dtype,
            num_threads=settings.num_threads or "auto",
            max_model_len=settings.context_tokens,
            max_num_seqs=settings.num_requests,
            max_num_batched_tokens=max(256, settings.num_requests),
            block_size=settings.block_size if configuration.paging else settings.context_tokens,
            kv_cache_bytes=settings.kv_cache_bytes,
            enable_prefix_caching=configuration.sharing,
            watermark_ratio=_WATERMARK_RATIO,
            quality_gate="off",
        )
    )
    if not configuration.paging:
        # It keeps room for sequences to grow. None grows here, and one block is a whole sequence.
        engine.scheduler.watermark_blocks = 0
    engine.runner.bind_to_thread()
    return engine


def measure(settings: Settings) -> Iterator[Sample]:
    """Round by round, the configurations in turn: a noisy machine treats them alike."""
    for number in range(settings.rounds):
        for configuration in CONFIGURATIONS:
            yield from _measure_once(settings, configuration, number)


def _measure_once(
    settings: Settings, configuration: Configuration, number: int
) -> Iterator[Sample]:
    """With an engine of its own: the cache is empty, and one copy of the weights in memory."""
    engine, generator = build_engine(settings, configuration), random.Random(number)
    warm_up, alone, repeated = (
        [generator.randrange(engine.vocab_size) for _ in range(settings.prompt_tokens)]
        for _ in range(3)
    )
    run_load(engine, [warm_up], min(_WARM_UP_TOKENS, settings.output_tokens))
    for row in configuration.rows:
        # What the second row of a configuration finds, the first has left.
        for prompts in ([alone], [repeated] * settings.num_requests):
            load = run_load(engine, prompts, settings.output_tokens)
            yield Sample(number, row, len(prompts), load)
    engine.stop()


def _events(options: dict[str, Any]) -> Iterator[dict[str, object]]:
    settings = settle(Options(**options))
    yield {"settings": asdict(settings)}
    for sample in measure(settings):
        yield {"sample": asdict(sample)}


if __name__ == "__main__":
    serve(_events)
