"""The decoder: token ids and KV memory in, logits out."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo import kernels
from octavo.kernels.cpu import Library
from octavo.kernels.operators import Operators
from octavo.models.architecture import ModelConfig
from octavo.models.layers import Linear, LinearLoader, load_norm
from octavo.models.native_decoder import NativeDecoder
from octavo.models.rope import RotaryTable
from octavo.models.weights import Checkpoint
from octavo.quantization.weights import WEIGHT_FORMATS, WeightFormat, matrix_format
from octavo.spans import operation

if TYPE_CHECKING:
    from octavo.execution.forward_batch import ForwardBatch
    from octavo.execution.kv_cache import KVCache


class DecoderLayer:
    """Attention and gated MLP on a residual stream, each behind an RMSNorm; in some families
    their output passes one too."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        index: int,
        max_position: int,
        weights: WeightFormat,
        library: Library | None,
        operators: Operators,
    ) -> None:
        hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
        heads, kv_heads = config.num_heads, config.num_kv_heads
        names, prefix = config.tensor_names, f"model.layers.{index}."
        loader = LinearLoader(
            checkpoint, matrix_format(weights, "layer"), library, operators, config.stored_format
        )
        self.num_bytes = 0  # of all weights as they are stored

        def norm(name: str, width: int = hidden) -> Tensor:
            loaded = load_norm(checkpoint, prefix + name, width, config.norm_offset)
            self.num_bytes += loaded.nbytes
            return loaded

        def linear(
            names: tuple[str, ...], outs: tuple[int, ...], width: int, bias: bool, **kind: bool
        ) -> Linear:
            return loader.load(tuple(prefix + n for n in names), outs, width, bias, **kind)

        q_size, kv_size = heads * dim, kv_heads * dim
        self.input_norm = norm("input_layernorm")
        self.qkv = linear(names.qkv, (q_size, kv_size, kv_size), hidden, config.qkv_bias)
        self.qk_norm: Tensor | None = None  # a row for each head of queries and keys
        if config.qk_norm:
            q_norm, k_norm = (norm(f"self_attn.{part}_norm", dim) for part in "qk")
            self.qk_norm = torch.cat([q_norm.expand(heads, dim), k_norm.expand(kv_heads, dim)])
        self.output = linear(("self_attn.o_proj",), (hidden,), q_size, config.output_bias)
        self.output_norm = norm(names.output_norm) if names.output_norm else None
        self.mlp_norm = norm(names.mlp_norm)
        self.gate_up = linear(names.gate_up, (inner, inner), hidden, config.mlp_bias, is_gated=True)
        self.activate = {"silu": operators.silu_mul, "gelu_tanh": operators.gelu_tanh_mul}[
            config.activation
        ]
        self.down = linear(("mlp.down_proj",), (hidden,), inner, config.mlp_bias)
        self.down_norm = norm(names.down_norm) if names.down_norm else None
        self.num_bytes += sum(
            each.num_bytes for each in (self.qkv, self.output, self.gate_up, self.down)
        )
        self._index = index
        self._config = config
        self._operators = operators
        window = config.sliding_windows[index]
        # A window that no context outgrows would only cost its mask.
        self.window = window if window is not None and window < max_position else None

    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        rotary: tuple[Tensor, Tensor],
        batch: "ForwardBatch",
        kv_cache: "KVCache",
    ) -> tuple[Tensor, Tensor]:
        """x, residual [T, hidden], not yet added to each other → the same of the next layer."""
        eps, ops = self._config.rms_norm_eps, self._operators
        with operation("norm"):
            x, residual = ops.add_rms_norm(x, residual, self.input_norm, eps)
        with operation("qkv"):
            qkv = self.qkv(x)
        attended = self._attend(qkv, rotary, batch, kv_cache)
        with operation("output"):
            x = self.output(attended)
        with operation("norm"):
            if self.output_norm is not None:
                x = ops.rms_norm(x, self.output_norm, eps)
            x, residual = ops.add_rms_norm(x, residual, self.mlp_norm, eps)
        with operation("gate_up"):
            gated = self.activate(self.gate_up(x))
        with operation("down"):
            x = self.down(gated)
        if self.down_norm is not None:
            with operation("norm"):
                x = ops.rms_norm(x, self.down_norm, eps)
        return x, residual

    def _attend(
        self,
        qkv: Tensor,
        rotary: tuple[Tensor, Tensor],
        batch: "ForwardBatch",
        kv_cache: "KVCache",
    ) -> Tensor:
        config = self._config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        kv = kv_cache.layers[self._index]
        with operation("store"):
            query = self._operators.rope_and_store(
                qkv.view(-1, heads + 2 * kv_heads, config.head_dim), self.qk_norm,
                config.rms_norm_eps, *rotary, kv.keys, kv.values, batch.slot_mapping,
                kv.key_scales, kv.value_scales, num_heads=heads,
            )  # fmt: skip
        # A chunk's own keys and values are read back as they are stored, like all others: so it
        # does not matter to a quantized cache where a prompt is cut.
        with operation("attend"):
            attended = self._operators.paged_attention(
                query, kv.keys, kv.values, batch.block_tables, batch.query_start,
                batch.context_lens, batch.num_decodes, config.attention_scale,
                key_scales=kv.key_scales, value_scales=kv.value_scales,
                window=self.window, softcap=config.attention_softcap,
                max_query_len=batch.max_query_len,
            )  # fmt: skip
        return attended.flatten(1)


class Decoder:
    """A decoder-only network of `config`, with the weights of a checkpoint folder.

    num_bytes: of all weights as they are stored; an embedding that is the lm_head too counts once,
        though its packed form is a copy
    step_weight_bytes: of those that a decode step reads, which are all but the embedding's; of
        that it reads a row for each token
    """

    def __init__(
        self,
        config: ModelConfig,
        folder: Path,
        dtype: torch.dtype,
        max_position: int,
        weights: WeightFormat | None = None,
        lm_head_format: str = "auto",
        library: Library | None = None,
        operators: Operators = kernels,
        device: torch.device | None = None,
    ) -> None:
        """`weights` is the format of matrices that the checkpoint has not quantized itself; without
        one, and in a checkpoint that has quantized any, they are stored as computed. `library`
        computes all of it on the CPU; without one `operators` do, on `device`. Raises ConfigError
        if a tensor is missing, unknown, of the wrong shape, or not to be held in its format."""
        device = device or torch.device("cpu")
        self.config = config
        self._operators = operators
        if weights is None or config.stored_format is not None:
            weights = WEIGHT_FORMATS[str(dtype).removeprefix("torch.")]
        head_format = matrix_format(weights, "lm_head", lm_head_format)
        with Checkpoint(folder, dtype, device) as checkpoint:
            vocabulary, hidden = config.vocab_size, config.hidden_size
            self.embedding = checkpoint.take("model.embed_tokens.weight", vocabulary, hidden)
            self.layers = [
                DecoderLayer(config, checkpoint, index, max_position, weights, library, operators)
                for index in range(config.num_layers)
            ]
            self.norm = load_norm(checkpoint, "model.norm", hidden, config.norm_offset)
            tied = config.tie_embeddings
            loader = LinearLoader(checkpoint, head_format, library, operators, config.stored_format)
            if tied:
                self.lm_head = loader.of("model.embed_tokens.weight", self.embedding)
            else:
                self.lm_head = loader.load(("lm_head",), (vocabulary,), hidden, bias=False)
            checkpoint.check_all_taken(
                ignored=("rotary_emb.inv_freq", *(("lm_head.weight",) if tied else ()))
            )
        self.step_weight_bytes = (
            sum(layer.num_bytes for layer in self.layers)
            + self.norm.nbytes
            + self.lm_head.num_bytes
        )
        shared = tied and not head_format.is_quantized
        self.num_bytes = self.step_weight_bytes + (0 if shared else self.embedding.nbytes)
        ropes = list(dict.fromkeys(config.layer_ropes))
        self._rotary = [RotaryTable(rope, max_position, device) for rope in ropes]
        self._rotary_of = [ropes.index(rope) for rope in config.layer_ropes]
        self.embedding_scale = (
            None if config.embedding_scale is None
            else torch.tensor(config.embedding_scale, dtype=dtype, device=device)
        )  # fmt: skip
        self._native: NativeDecoder | None = None
        if library is not None:
            rotary = [self._rotary[which] for which in self._rotary_of]
            self._native = NativeDecoder(library, self, rotary)

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids [T] → [T, hidden]."""
        embedded = F.embedding(token_ids, self.embedding)
        return embedded if self.embedding_scale is None else embedded * self.embedding_scale

    def forward(
        self, batch: "ForwardBatch", kv_cache: "KVCache", out: Tensor | None = None
    ) -> Tensor:
        """Logits of the batch's sample_indices, [N, vocab_size] float32, in `out` if that is given,
        else valid until the next call. Keys and values of all its tokens are stored in
        `kv_cache`."""
        if self._native is not None:
            return self._native.forward(batch, kv_cache)
        with operation("embed"):
            rotary = [table.at(batch.positions) for table in self._rotary]
            x = self.embed(batch.token_ids)
            residual = torch.zeros_like(x)
        for layer, which in zip(self.layers, self._rotary_of, strict=True):
            x, residual = layer.forward(x, residual, rotary[which], batch, kv_cache)
        with operation("norm"):
            last = x[batch.sample_indices] + residual[batch.sample_indices]
            normed = self._operators.rms_norm(last, self.norm, self.config.rms_norm_eps)
        with operation("lm_head"):
            return self._logits(normed, out)

    def _logits(self, normed: Tensor, out: Tensor | None) -> Tensor:
        logits = self.lm_head(normed)
        logits = logits.float() if out is None else out.copy_(logits)
        cap = self.config.logits_softcap
        if cap is None:
            return logits
        capped = kernels.apply_softcap(logits, cap)
        return capped if out is None else out.copy_(capped)
