"""Baseline and candidate read the same tokens, each with the engine's own decoder and KV memory.

They go side by side, chunk by chunk: the divergence needs both distributions of a token at once,
and one side's for a whole text would be 500 kB a token of a vocabulary of 128,000. So memory holds
both models' weights, the KV memory of a window for each, and the logits of a chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.config import EngineConfig, make_config
from octavo.errors import ConfigError
from octavo.execution.forward_batch import ForwardBatch
from octavo.execution.memory_plan import kv_layout
from octavo.execution.model_runner import ModelRunner
from octavo.models.model_config import read_model_config
from octavo.quality.windows import Window
from octavo.texts import Document, TextTokenizer

_CHUNK_TOKENS = 256
_LOGITS_OF_A_CHUNK = 2**25  # numbers; the chunks of large vocabularies are shorter


@dataclass(frozen=True, slots=True)
class WindowScores:
    """Of a window's scored tokens, each array as long as they are.

    baseline_nll, candidate_nll: negative log likelihoods, nats
    kl: of the candidate's distribution from the baseline's, nats
    baseline_top, candidate_top: the most likely tokens
    num_not_finite: tokens for which the candidate has no probabilities
    """

    baseline_nll: NDArray[np.float32]
    candidate_nll: NDArray[np.float32]
    kl: NDArray[np.float32]
    baseline_top: NDArray[np.int32]
    candidate_top: NDArray[np.int32]
    num_not_finite: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that was read, and what each token of it cost: a score for each window."""

    documents: list[Document]
    windows: list[Window]
    scores: list[WindowScores]
    tokenizer: TextTokenizer


class Reader:
    """One side: a model as the engine would run it, with KV memory for one window."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises ConfigError."""
        self.config = config
        self.runner = ModelRunner(config)
        blocks = self.runner.kv_cache.num_blocks
        # The last block first: a table that is not the identity.
        self._table = torch.arange(blocks - 1, -1, -1)

    @torch.inference_mode()
    def log_probs(self, window: Window, begin: int, end: int) -> Tensor:
        """Of the tokens behind those from `begin` to `end`, as far as they are scored, [scored,
        vocab_size] float32. The window's tokens before `begin` have been read."""
        size = self.runner.block_size
        positions = torch.arange(begin, end)
        first = max(window.given - 1 - begin, 0)
        batch = ForwardBatch(
            token_ids=torch.tensor(window.token_ids[begin:end]),
            positions=positions,
            slot_mapping=self._table[positions // size] * size + positions % size,
            block_tables=self._table[None],
            query_start=torch.tensor([0, end - begin]),
            context_lens=torch.tensor([end]),
            sample_indices=torch.arange(first, end - begin),
            num_decodes=0,
            max_query_len=end - begin,
        )
        runner = self.runner
        if runner.device.type == "cuda":
            batch = batch.to(runner.device)
        # The logits' memory is the library's, which the other side may share: this is a copy.
        return runner.model.forward(batch, runner.kv_cache).log_softmax(-1)


def side_config(folder: Path, context: int, settings: dict[str, object]) -> EngineConfig:
    """Of one side: one sequence of `context` tokens, and KV memory for it. Raises ConfigError."""
    common = {
        "model": folder,
        "max_model_len": context,
        "max_num_seqs": 1,
        "max_num_batched_tokens": _CHUNK_TOKENS,
        "cuda_graphs": False,
        **{name: value for name, value in settings.items() if value is not None},
    }
    config = make_config(**common)
    model = read_model_config(folder)
    layout = kv_layout(config, model, model.dtype if config.dtype == "auto" else config.dtype)
    blocks = -(-context // layout.block_size)
    return make_config(**common, kv_cache_bytes=blocks * layout.block_bytes)


def score(baseline: Reader, candidate: Reader, windows: Sequence[Window]) -> Iterator[WindowScores]:
    """Window by window. Raises ConfigError if the baseline computes no probabilities."""
    vocabulary = baseline.runner.model_config.vocab_size
    chunk = max(1, min(_CHUNK_TOKENS, _LOGITS_OF_A_CHUNK // vocabulary))
    for window in windows:
        read = len(window.token_ids) - 1  # the last is only predicted
        parts = []
        for begin in range(0, read, chunk):
            end = min(begin + chunk, read)
            first = baseline.log_probs(window, begin, end)
            second = candidate.log_probs(window, begin, end)
            targets = torch.tensor(window.token_ids[end + 1 - len(first) : end + 1])
            if len(targets):
                parts.append(_compare(first, second.to(first.device), targets))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        nll, other_nll, kl, top, other_top, finite = columns
        yield WindowScores(nll, other_nll, kl, top, other_top, int((~finite).sum()))


@torch.inference_mode()
def _compare(first: Tensor, second: Tensor, targets: Tensor) -> tuple[NDArray[Any], ...]:
    """Columns of WindowScores, and where the candidate is finite."""
    index = targets.to(first.device)[:, None]
    baseline_nll = -first.gather(1, index)[:, 0]
    if not bool(torch.isfinite(baseline_nll).all()):
        raise ConfigError("the baseline's logits are no numbers; its weights or dtype do not fit")
    candidate_nll = -second.gather(1, index)[:, 0]
    kl = (first.exp() * (first - second)).sum(-1, dtype=torch.float64).float().clamp(min=0)
    finite = torch.isfinite(candidate_nll) & torch.isfinite(kl)
    hopeless = 2 * float(np.log(first.shape[1]))
    candidate_nll = torch.where(finite, candidate_nll, hopeless)
    kl = torch.where(finite, kl, hopeless)
    top = torch.where(finite, second.argmax(-1), -1)
    columns = (baseline_nll, candidate_nll, kl, first.argmax(-1).int(), top.int(), finite)
    return tuple(column.cpu().numpy() for column in columns)


def by_document(measured: Measured) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Summed differences, candidate less baseline, and scored tokens, of each document that has
    any, in their order."""
    numbers = np.array([window.document for window in measured.windows])
    sums = np.array(
        [
            own.candidate_nll.sum(dtype=np.float64) - own.baseline_nll.sum(dtype=np.float64)
            for own in measured.scores
        ]
    )
    scored = np.array([window.num_scored for window in measured.windows], dtype=np.float64)
    tokens = np.bincount(numbers, scored)
    has_any = tokens > 0
    return (
        np.bincount(numbers, sums)[has_any].astype(np.float64),
        tokens[has_any].astype(np.float64),
    )
