"""Steps on a device that computes while the host goes on: CUDA graphs for decodes, eager prefills.

A step of decodes alone is one graph for each padded number of sequences: the forward pass, the
sampling, and the sampled tokens put where the next step reads them. It is launched by a copy of
four numbers a sequence and what has changed in the block tables. A step with chunks of prompts is
launched operator by operator. Neither waits for the device.
"""

import bisect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.errors import StepMemoryError
from octavo.execution.decode_rows import DecodeRows
from octavo.execution.forward_batch import ForwardBatch
from octavo.execution.host_copies import fetched
from octavo.execution.kv_cache import KVCache
from octavo.execution.sampler import PendingTokens, SampledTokens, Sampler
from octavo.kernels.operators import Operators
from octavo.models.decoder import Decoder
from octavo.scheduling.sequence import StepPlan
from octavo.spans import span

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DecodeOutput:
    """Of each row of a padded step: logits [P, V] float32, token_ids [P] int64, is_finite [P]."""

    logits: Tensor
    token_ids: Tensor
    is_finite: Tensor


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Numbers of sequences that a step of decodes is padded to: a graph takes some 0.1 s to
    capture, and an empty row next to nothing to compute."""
    sizes = [1, 2, 4, 8, *range(16, 257, 16), *range(288, 513, 32), *range(576, 4097, 64)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


class DecodeGraph:
    """One step of `size` rows, captured; on a device without graphs it is called anew each time,
    in the same memory."""

    def __init__(
        self, body: Callable[[], DecodeOutput], device: torch.device, pool: Any = None
    ) -> None:
        """pool: the memory that graphs share of which one runs at a time."""
        self._replay = body
        if device.type != "cuda":
            return
        body()  # compiles and tunes what is not yet
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            output = body()

        def replay() -> DecodeOutput:
            graph.replay()
            return output

        self._replay = replay  # which does not hold on to the runner, as the body does

    def replay(self) -> DecodeOutput:
        """Valid until the next replay of any graph."""
        return self._replay()


class PendingDeviceStep:
    """A step whose tokens are on their way to the host."""

    def __init__(self, tokens: PendingTokens, rows: list[int] | None = None) -> None:
        """rows: where the takers' tokens are, if not side by side."""
        self._tokens = tokens
        self._rows = rows
        self._token_ids = fetched(tokens.token_ids)
        self._is_finite = fetched(tokens.is_finite)
        self._event: torch.cuda.Event | None = None
        if tokens.token_ids.is_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def result(self) -> SampledTokens:
        """Waits for the step. Raises RuntimeError if the device has failed."""
        if self._event is not None:
            self._event.synchronize()
        token_ids, is_finite = self._token_ids, self._is_finite
        if self._rows is not None:
            token_ids, is_finite = token_ids[self._rows], is_finite[self._rows]
        try:
            return self._tokens.result(token_ids, is_finite)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return self._tokens.without_logprobs(token_ids, is_finite)


class DeviceRunner:
    """Launches steps, one after the other, on one device: nothing here knows of others."""

    def __init__(
        self,
        model: Decoder,
        kv_cache: KVCache,
        operators: Operators,
        *,
        max_num_seqs: int,
        max_model_len: int,
        with_graphs: bool = True,
    ) -> None:
        self.kv_cache = kv_cache
        self._model = model
        self._operators = operators
        self._device = kv_cache.storage.device
        self._sampler = Sampler(None, operators)
        max_blocks = -(-max_model_len // kv_cache.block_size)
        self._rows = DecodeRows(max_num_seqs, max_blocks, kv_cache.block_size, self._device)
        self._starts = torch.arange(max_num_seqs + 1, device=self._device)
        self._sizes = graph_sizes(max_num_seqs) if with_graphs else []
        self._graphs: dict[int, DecodeGraph] = {}
        self._pool: Any = None
        # One for all graphs, which would otherwise keep their own.
        shape = (max_num_seqs if with_graphs else 0, model.config.vocab_size)
        self._logits = torch.empty(shape, dtype=torch.float32, device=self._device)

    @torch.inference_mode()
    def capture(self, *, largest_only: bool = False) -> None:
        """Captures the graphs, the largest first, so that the others fit into its memory."""
        began_s = time.monotonic()
        if self._device.type == "cuda" and self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        sizes = self._sizes[-1:] if largest_only else self._sizes
        for done, size in enumerate(reversed(sizes), 1):
            self._graphs[size] = DecodeGraph(self._body(size), self._device, self._pool)
            if done % 8 == 0 or done == len(sizes):
                log.info(
                    "captured %d of %d decode graphs, up to %d sequences, in %.1f s",
                    done, len(sizes), sizes[-1], time.monotonic() - began_s,
                )  # fmt: skip

    def forget_graphs(self) -> None:
        """Gives their memory back."""
        self._graphs.clear()
        self._pool = None
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingDeviceStep:
        """Begins a step behind those launched before. Raises StepMemoryError."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # of this thread
        try:
            self._rows.keep(plan.decodes)
            return self._launch_graph(plan) if self._has_graph(plan) else self._launch_eager(plan)
        except torch.OutOfMemoryError as exc:
            # A graph may have put its tokens there already; they come from the host then.
            self._rows.keep([])
            torch.cuda.empty_cache()
            raise StepMemoryError(
                f"a step of {len(plan.decodes)} decodes and {plan.num_prefill_tokens} prompt "
                f"tokens needs more memory than is left ({str(exc).splitlines()[0]}); lower "
                "gpu_memory_utilization or max_num_batched_tokens"
            ) from None

    def _has_graph(self, plan: StepPlan) -> bool:
        return bool(self._graphs) and not plan.prefills

    def _launch_graph(self, plan: StepPlan) -> PendingDeviceStep:
        decodes = plan.decodes
        with span("batch"):
            self._rows.prepare(decodes)
        size = self._sizes[bisect.bisect_left(self._sizes, len(decodes))]
        with span("forward"):
            output = self._graphs[size].replay()
        rows = self._rows.row_numbers(decodes)
        if self._sampler.is_plain(decodes):
            tokens = PendingTokens.plain(decodes, output.token_ids, output.is_finite)
            return PendingDeviceStep(tokens, rows)
        with span("sample"):
            tokens = self._sampler.sample(decodes, output.logits[self._rows.rows(decodes)])
        self._rows.add(decodes, tokens.token_ids)
        return PendingDeviceStep(tokens)

    def _launch_eager(self, plan: StepPlan) -> PendingDeviceStep:
        with span("batch"):
            batch = ForwardBatch.from_plan(plan, self.kv_cache.block_size).to(self._device)
            if plan.decodes:
                latest = self._rows.latest[self._rows.rows(plan.decodes)]
                batch.token_ids[: len(plan.decodes)] = latest
        with span("forward"):
            logits = self._model.forward(batch, self.kv_cache)
        with span("sample"):
            tokens = self._sampler.sample_plan(plan, logits)
        self._rows.add(plan.takers, tokens.token_ids)
        return PendingDeviceStep(tokens)

    def _body(self, size: int) -> Callable[[], DecodeOutput]:
        rows, params = self._rows, self._rows.params
        positions, context_lens, slots, output_index = (part[:size] for part in rows.numbers)
        batch = ForwardBatch(
            token_ids=rows.latest[:size],
            positions=positions,
            slot_mapping=slots,
            block_tables=rows.block_tables[:size],
            query_start=self._starts[: size + 1],
            context_lens=context_lens,
            sample_indices=self._starts[:size],
            num_decodes=size,
            max_query_len=1,
        )
        operators = self._operators

        def body() -> DecodeOutput:
            logits = self._model.forward(batch, self.kv_cache, self._logits[:size])
            _, is_finite = operators.greedy(logits)
            uniform = operators.uniform_numbers(params.seeds[:size], output_index)
            token_ids = operators.sample(
                logits, params.temperature[:size], params.top_k[:size], params.top_p[:size],
                params.min_p[:size], uniform,
            )  # fmt: skip
            rows.latest[:size].copy_(token_ids)
            return DecodeOutput(logits, token_ids, is_finite)

        return body
