"""The decoder: token ids and KV memory in, logits out."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo import kernels
from octavo.models.layers import Linear, RotaryTable
from octavo.models.model_config import ModelConfig
from octavo.models.weights import Checkpoint

if TYPE_CHECKING:
    from octavo.execution.forward_batch import ForwardBatch
    from octavo.execution.kv_cache import KVCache


class DecoderLayer:
    """Attention and gated MLP, each behind an RMSNorm, on a residual stream."""

    def __init__(self, config: ModelConfig, checkpoint: Checkpoint, index: int) -> None:
        hidden, dim = config.hidden_size, config.head_dim
        q_size, kv_size = config.num_heads * dim, config.num_kv_heads * dim
        name = f"model.layers.{index}"
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        self.input_norm = checkpoint.take(f"{name}.input_layernorm.weight", hidden)
        self.qkv = Linear.load(
            checkpoint, [f"{attention}.{part}_proj" for part in "qkv"],
            [q_size, kv_size, kv_size], hidden, config.attention_bias,
        )  # fmt: skip
        self.output = Linear.load(
            checkpoint, [f"{attention}.o_proj"], [hidden], q_size, config.attention_bias
        )
        self.mlp_norm = checkpoint.take(f"{name}.post_attention_layernorm.weight", hidden)
        self.gate_up = Linear.load(
            checkpoint, [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
            [config.intermediate_size] * 2, hidden, config.mlp_bias,
        )  # fmt: skip
        self.down = Linear.load(
            checkpoint, [f"{mlp}.down_proj"], [hidden], config.intermediate_size, config.mlp_bias
        )
        self._index = index
        self._config = config

    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        rotary: tuple[Tensor, Tensor],
        batch: "ForwardBatch",
        kv_cache: "KVCache",
    ) -> tuple[Tensor, Tensor]:
        """x, residual [T, hidden], not yet added to each other → the same of the next layer."""
        eps = self._config.rms_norm_eps
        x, residual = kernels.add_rms_norm(x, residual, self.input_norm, eps)
        x = self.output(self._attend(self.qkv(x), rotary, batch, kv_cache))
        x, residual = kernels.add_rms_norm(x, residual, self.mlp_norm, eps)
        return self.down(kernels.silu_mul(self.gate_up(x))), residual

    def _attend(
        self,
        qkv: Tensor,
        rotary: tuple[Tensor, Tensor],
        batch: "ForwardBatch",
        kv_cache: "KVCache",
    ) -> Tensor:
        heads, kv_heads, dim = (
            self._config.num_heads, self._config.num_kv_heads, self._config.head_dim,
        )  # fmt: skip
        split = qkv.view(-1, heads + 2 * kv_heads, dim)
        rotated = kernels.apply_rope(split[:, : heads + kv_heads], *rotary)
        keys, values = kv_cache.keys[self._index], kv_cache.values[self._index]
        kernels.store_kv(
            rotated[:, heads:], split[:, heads + kv_heads :], keys, values, batch.slot_mapping
        )
        attended = kernels.paged_attention(
            rotated[:, :heads], keys, values, batch.block_tables, batch.query_start,
            batch.context_lens, batch.num_decodes, dim**-0.5,
        )  # fmt: skip
        return attended.flatten(1)


class Decoder:
    """A decoder-only network of `config`, with the weights of a checkpoint folder."""

    def __init__(
        self, config: ModelConfig, folder: Path, dtype: torch.dtype, max_position: int
    ) -> None:
        """Raises ConfigError if a tensor is missing, unknown or of the wrong shape."""
        self.config = config
        with Checkpoint(folder, dtype) as checkpoint:
            vocabulary, hidden = config.vocab_size, config.hidden_size
            self.embedding = checkpoint.take("model.embed_tokens.weight", vocabulary, hidden)
            self.layers = [
                DecoderLayer(config, checkpoint, index) for index in range(config.num_layers)
            ]
            self.norm = checkpoint.take("model.norm.weight", hidden)
            tied = config.tie_embeddings
            self.lm_head = Linear.of(
                self.embedding if tied else checkpoint.take("lm_head.weight", vocabulary, hidden)
            )
            checkpoint.check_all_taken(
                ignored=("rotary_emb.inv_freq", *(("lm_head.weight",) if tied else ()))
            )
        self.rotary = RotaryTable(config.rope, config.head_dim, max_position)

    def forward(self, batch: "ForwardBatch", kv_cache: "KVCache") -> Tensor:
        """Logits of the batch's sample_indices, [N, vocab_size] float32. Keys and values of
        all its tokens are stored in `kv_cache`."""
        rotary = self.rotary.at(batch.positions)
        x = F.embedding(batch.token_ids, self.embedding)
        residual = torch.zeros_like(x)
        for layer in self.layers:
            x, residual = layer.forward(x, residual, rotary, batch, kv_cache)
        last = x[batch.sample_indices] + residual[batch.sample_indices]
        return self.lm_head(kernels.rms_norm(last, self.norm, self.config.rms_norm_eps)).float()

    @property
    def num_bytes(self) -> int:
        """Bytes of weights; a tied embedding counts once, though its packed form is a copy."""
        tensors = [self.embedding, self.norm]
        if not self.config.tie_embeddings:
            tensors.append(self.lm_head.weight)
        for layer in self.layers:
            tensors += [layer.input_norm, layer.mlp_norm]
            for part in (layer.qkv, layer.output, layer.gate_up, layer.down):
                tensors += [part.weight] if part.bias is None else [part.weight, part.bias]
        return sum(tensor.nbytes for tensor in tensors)
