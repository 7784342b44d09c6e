"""Log probabilities of chosen and of most likely tokens."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own probabilities, before temperature and cuts.

    `rank` 1 is the most likely token; `top` has (token id, log probability), best first.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, token_ids: Rows[int], counts: Rows[int]) -> list[TokenLogprobs]:
    """For each row of logits [N, V] its own token and the counts[i] most likely ones. Of equal
    tokens the one with the smaller id comes first, so that ranks are distinct."""
    logprobs = logits.log_softmax(-1)
    chosen_ids = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)[:, None]
    chosen = logprobs.gather(1, chosen_ids)
    ids = torch.arange(logits.shape[1], device=logits.device)
    before = (logprobs > chosen) | ((logprobs == chosen) & (ids < chosen_ids))
    ranks = (before.sum(-1) + 1).tolist()
    tops = _most_likely(logprobs, min(max(counts), logits.shape[1]))
    return [
        TokenLogprobs(logprob, rank, top[:count])
        for logprob, rank, top, count in zip(
            chosen.squeeze(1).tolist(), ranks, tops, counts, strict=True
        )
    ]


def _most_likely(logprobs: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """The `count` most likely tokens of each row [N, V], with their log probabilities."""
    if count == 0:
        return [()] * len(logprobs)
    values, ids = logprobs.topk(count)
    # Of tokens as likely as the last one topk takes any; the smaller ids are wanted.
    is_tied = ((logprobs >= values[:, -1:]).sum(-1) > count).tolist()
    tops = []
    for row, (row_ids, row_values) in enumerate(zip(ids.tolist(), values.tolist(), strict=True)):
        if is_tied[row]:
            row_ids = (logprobs[row] >= values[row, -1]).nonzero().squeeze(1)
            row_values = logprobs[row, row_ids].tolist()
            row_ids = row_ids.tolist()
        pairs = sorted(zip(row_ids, row_values, strict=True), key=lambda pair: (-pair[1], pair[0]))
        tops.append(tuple(pairs[:count]))
    return tops
