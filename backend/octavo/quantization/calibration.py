"""Runs text through a decoder one layer at a time, to see what its matrices multiply."""

from array import array
from collections.abc import Callable, Sequence
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
from octavo.texts import TextTokenizer, read_texts

_BLOCK_SIZE = 16
# Of what the layers pass on, in float32: fewer windows are taken of a wide model.
_STATE_BYTES = 256 * 2**20
_LARGEST_TEXT = 64 * 2**20  # bytes; it is in memory as a whole
_PIECE = 2**16  # characters
_CHARACTERS_PER_TOKEN = 32  # more than any text has on average


def read_windows(
    folder: Path, text: Path, num_tokens: int, window: int, config: ModelConfig
) -> list[list[int]]:
    """Windows of the tokens of a file of text, or of .jsonl with a "text" in each line, spread
    evenly over it. Raises ConfigError if there is not one."""
    tokenizer = TextTokenizer(folder, config.vocab_size)
    length = min(window, config.max_position)
    tokens = array("i")  # 4 bytes each, which lists take ten times
    for piece in _pieces(text, num_tokens):
        (document,) = tokenizer.documents([piece])
        tokens.extend((*tokenizer.prefix, *document.token_ids))
    if len(tokens) < length:
        raise ConfigError(f"{text}: {len(tokens)} tokens; a window of {length} is the least")
    affordable = _STATE_BYTES // (4 * config.hidden_size)
    wanted = max(1, min(num_tokens, affordable) // length)
    available = len(tokens) // length
    count = min(wanted, available)
    starts = [index * available // count * length for index in range(count)]
    return [tokens[begin : begin + length].tolist() for begin in starts]


def _pieces(text: Path, num_tokens: int) -> list[tuple[str, str]]:
    """The documents' places and texts, long ones in pieces, as encoding takes hundreds of bytes a
    character; of far more than `num_tokens` can need, every so many."""
    if text.is_file() and text.stat().st_size > _LARGEST_TEXT:
        raise ConfigError(
            f"{text}: {text.stat().st_size:,} bytes; calibration reads at most {_LARGEST_TEXT:,}, "
            "of which it takes some thousand tokens: cut a sample"
        )
    pieces = [
        (place, own[begin : begin + _PIECE])
        for place, own in read_texts(text, by_paragraph=False)
        for begin in range(0, len(own), _PIECE)
    ]
    spare = sum(len(own) for _, own in pieces) // (_CHARACTERS_PER_TOKEN * num_tokens)
    return pieces[:: max(1, min(spare, len(pieces)))]


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
