"""Interpolated Kneser-Ney n-grams over token ids: the baseline a trained network must beat.

Counts are sorted arrays. An n-gram is keyed by (the index of its context among the grams one
shorter, its last token), so every key fits 64 bits at any order and a lookup is a binary search.

P_n(w|c) = max(a(cw) - D, 0) / a(c·) + D N1+(c·) / a(c·) P_{n-1}(w|c'), with D = n1 / (n1 + 2 n2)
per order; a is the plain count at the highest order and the number of distinct left neighbours
below; P_0 is uniform over the vocabulary, so every distribution sums to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(slots=True)
class Level:
    """All grams of one order, sorted by key = context index * vocab + last token."""

    keys: IntArray
    counts: IntArray  # a(cw): count or continuation count
    context_sum: IntArray  # a(c·), by context index
    context_types: IntArray  # N1+(c·), by context index
    discount: float


def find(keys: IntArray, wanted: IntArray) -> IntArray:
    """Index of each wanted key, -1 where it is absent (or asked for as negative)."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where((wanted >= 0) & (keys[at] == wanted), at, -1)


class KneserNey:
    """An interpolated model of one order over a vocabulary of `vocab` ids."""

    def __init__(self, tokens: IntArray, order: int, vocab: int) -> None:
        self.order, self.vocab = order, vocab
        # grams[n][i]: the index, among the distinct n-grams, of the one that starts at i.
        keys_of, gram_at, counts_of = self._index(tokens)
        self.levels: list[Level] = []
        for n in range(1, order + 1):
            keys = keys_of[n - 1]
            counts = counts_of[n - 1]
            if n < order:  # distinct left neighbours: the (n+1)-grams whose last n tokens are it
                longer = np.unique(gram_at[n], return_index=True)[1]
                counts = np.bincount(gram_at[n - 1][longer + 1], minlength=len(keys))
            contexts = keys // vocab
            size = 1 if n == 1 else len(keys_of[n - 2])
            n1, n2 = int((counts == 1).sum()), int((counts == 2).sum())
            self.levels.append(
                Level(
                    keys=keys,
                    counts=counts.astype(np.int64),
                    context_sum=np.bincount(contexts, counts, size).astype(np.int64),
                    context_types=np.bincount(contexts, counts > 0, size).astype(np.int64),
                    discount=n1 / (n1 + 2 * n2) if n1 else 0.5,
                )
            )

    def _index(self, tokens: IntArray) -> tuple[list[IntArray], list[IntArray], list[IntArray]]:
        keys_of, gram_at, counts_of = [], [], []
        prefix = np.zeros(len(tokens), dtype=np.int64)
        for n in range(1, self.order + 1):
            starts = len(tokens) - n + 1
            key = prefix[:starts] * self.vocab + tokens[n - 1 : n - 1 + starts]
            keys, prefix, counts = np.unique(key, return_inverse=True, return_counts=True)
            keys_of.append(keys)
            gram_at.append(prefix)
            counts_of.append(counts)
        return keys_of, gram_at, counts_of

    def probabilities(self, contexts: IntArray, words: IntArray) -> FloatArray:
        """P(word | context) of each row; contexts [rows, order - 1], oldest token first, -1 = none.

        A context is used from its newest token back to the first that is missing or unseen.
        """
        rows = len(words)
        result = np.full(rows, 1.0 / self.vocab)
        for n in range(1, self.order + 1):
            level = self.levels[n - 1]
            index = np.zeros(rows, dtype=np.int64)
            for k in range(n - 1):  # walk the n-1 context tokens through the shorter levels
                token = contexts[:, self.order - n + k]
                known = (index >= 0) & (token >= 0)
                key = np.where(known, index * self.vocab + token, -1)
                index = find(self.levels[k].keys, key)
            safe = np.maximum(index, 0)
            total = np.where(index >= 0, level.context_sum[safe], 0)
            has = total > 0
            at = find(level.keys, np.where(has, index * self.vocab + words, -1))
            count = np.where(at >= 0, level.counts[np.maximum(at, 0)], 0)
            denominator = np.maximum(total, 1)
            direct = np.maximum(count - level.discount, 0) / denominator
            back = level.discount * level.context_types[safe] / denominator
            result = np.where(has, direct + back * result, result)
        return result

    def score(self, tokens: IntArray) -> FloatArray:
        """log2 P of tokens[1:], each given up to order - 1 tokens before it."""
        width = self.order - 1
        padded = np.concatenate([np.full(width - 1, -1, dtype=np.int64), tokens])
        windows = np.lib.stride_tricks.sliding_window_view(padded, width)[: len(tokens) - 1]
        return np.log2(self.probabilities(windows, tokens[1:]))

    def check_normalised(self, tokens: IntArray, contexts: int = 20, seed: int = 0) -> float:
        """Largest |sum over the vocabulary - 1| at random contexts, seen and unseen."""
        rng = np.random.default_rng(seed)
        every = np.arange(self.vocab, dtype=np.int64)
        worst = 0.0
        for i in range(contexts):
            at = int(rng.integers(0, len(tokens) - self.order))
            context = tokens[at : at + self.order - 1].astype(np.int64)
            if i % 4 == 1:
                context = rng.integers(0, self.vocab, self.order - 1)
            if i % 4 == 2:
                context = np.where(np.arange(self.order - 1) < 2, -1, context)
            total = self.probabilities(np.tile(context, (self.vocab, 1)), every).sum()
            worst = max(worst, abs(float(total) - 1.0))
        return worst
