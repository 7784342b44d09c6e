"""Runs text through a decoder one layer at a time, to see what its matrices multiply."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo import kernels
from octavo.errors import ConfigError
from octavo.execution.forward_batch import ForwardBatch
from octavo.execution.kv_cache import KVCache
from octavo.kernels.operators import Operators, PackedWeight
from octavo.models.decoder import DecoderLayer
from octavo.models.model_config import ModelConfig
from octavo.models.rope import RotaryTable
from octavo.models.weights import Checkpoint
from octavo.quantization.kv import KV_FORMATS, KVLayout
from octavo.quantization.weights import WEIGHT_FORMATS

_BLOCK_SIZE = 16
# Of what the layers pass on, in float32: fewer windows are taken of a wide model.
_STATE_BYTES = 256 * 2**20


def read_windows(
    folder: Path, text: Path, num_tokens: int, window: int, config: ModelConfig
) -> list[list[int]]:
    """Windows of the tokens of a file of text, or of .jsonl with a "text" in each line, spread
    evenly over it. Raises ConfigError if there is not one."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as exc:  # whatever the Rust side raises
        raise ConfigError(f"{folder / 'tokenizer.json'}: no tokenizer ({exc})") from None
    length = min(window, config.max_position)
    tokens = [i for document in _documents(text) for i in tokenizer.encode(document).ids]
    if len(tokens) < length:
        raise ConfigError(f"{text}: {len(tokens)} tokens; a window of {length} is the least")
    if max(tokens) >= config.vocab_size:
        raise ConfigError(f"{folder / 'tokenizer.json'}: token {max(tokens)} is none of the model")
    affordable = _STATE_BYTES // (4 * config.hidden_size)
    wanted = max(1, min(num_tokens, affordable) // length)
    available = len(tokens) // length
    count = min(wanted, available)
    starts = [index * available // count * length for index in range(count)]
    return [tokens[begin : begin + length] for begin in starts]


def _documents(text: Path) -> Iterator[str]:
    try:
        content = text.read_text(encoding="utf-8")
        if text.suffix == ".jsonl":
            for line in filter(str.strip, content.splitlines()):
                yield str(json.loads(line)["text"])
        else:
            yield content
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(
            f"{text}: neither text nor .jsonl with a 'text' in each line ({exc})"
        ) from None


class _ObservedOperators:
    """The reference operators; `linear` shows what it is given."""

    def __init__(self, seen: Callable[[PackedWeight, Tensor], None]) -> None:
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(kernels, name)

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        self._seen(weight, x)
        return kernels.linear(x, weight, bias)


class Calibration:
    """What flows between layers for each window, all of it in float32.

    states: of each window, [T, hidden], what the next layer is given
    """

    def __init__(
        self, config: ModelConfig, source: Checkpoint, windows: Sequence[Sequence[int]]
    ) -> None:
        self._config = config
        self._length = len(windows[0])
        table = source.as_stored("model.embed_tokens.weight")
        self.states = [F.embedding(torch.tensor(window), table).float() for window in windows]
        if config.embedding_scale is not None:
            for state in self.states:
                state *= config.embedding_scale
        layout = KVLayout(
            (KV_FORMATS["float32"],), _BLOCK_SIZE, config.num_kv_heads, config.head_dim
        )
        cache = KVCache.allocate(layout, -(-self._length // _BLOCK_SIZE), torch.device("cpu"))
        # One layer runs at a time, so all may use the same memory.
        self._cache = replace(cache, layers=cache.layers * config.num_layers)
        self._batch = _batch(self._length)
        ropes = {rope: RotaryTable(rope, self._length) for rope in set(config.layer_ropes)}
        self._rotary = [ropes[rope] for rope in config.layer_ropes]

    @torch.inference_mode()
    def advance(self, checkpoint: Checkpoint, index: int, config: ModelConfig) -> None:
        """Takes the states through layer `index` as `checkpoint` holds it."""
        layer = self._layer(checkpoint, index, config, kernels)
        for number, state in enumerate(self.states):
            self.states[number] = self._run(layer, index, state)

    @torch.inference_mode()
    def observe(
        self, checkpoint: Checkpoint, index: int, seen: Callable[[str, Tensor], None]
    ) -> None:
        """Runs layer `index` and tells what each of its matrices, by the name of the first one
        that is stacked there, is multiplied with, [T, in]. The states stay."""
        names: dict[int, str] = {}
        operators = _ObservedOperators(lambda weight, x: seen(names[id(weight)], x))
        layer = self._layer(checkpoint, index, self._config, cast(Operators, operators))
        own = self._config.tensor_names
        for name, linear in (
            (own.qkv[0], layer.qkv), ("self_attn.o_proj", layer.output),
            (own.gate_up[0], layer.gate_up), ("mlp.down_proj", layer.down),
        ):  # fmt: skip
            names[id(linear.weight)] = name
        for state in self.states:
            self._run(layer, index, state)

    def _layer(
        self, checkpoint: Checkpoint, index: int, config: ModelConfig, operators: Operators
    ) -> DecoderLayer:
        own = WEIGHT_FORMATS["float32"]
        return DecoderLayer(config, checkpoint, index, self._length, own, None, operators)

    def _run(self, layer: DecoderLayer, index: int, state: Tensor) -> Tensor:
        rotary = self._rotary[index].at(self._batch.positions)
        # The layer adds to what it is given.
        x, residual = layer.forward(
            state.clone(), torch.zeros_like(state), rotary, self._batch, self._cache
        )
        return x + residual


def _batch(length: int) -> ForwardBatch:
    """One window, whole."""
    positions = torch.arange(length)
    return ForwardBatch(
        token_ids=torch.zeros(length, dtype=torch.int64),
        positions=positions,
        slot_mapping=positions,
        block_tables=torch.arange(-(-length // _BLOCK_SIZE))[None],
        query_start=torch.tensor([0, length]),
        context_lens=torch.tensor([length]),
        sample_indices=torch.tensor([length - 1]),
        num_decodes=0,
        max_query_len=length,
    )
