"""What checkpoints lose against the one that they were made from, and against each other.

    python bench/quantizers.py models/octavo-tiny rtn gptq --text models/octavo-tiny/heldout.jsonl

Of each: perplexity, its loss, and the bounds of that by the gate's bootstrap over documents. Then
of each pair what the second loses against the first, by the same bootstrap of their own
differences. All read the same tokens, so what is hard for both cancels out: the bounds of a pair
say more than those of its members laid side by side. With an upper bound below 0 the second is
better.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.models.model_config import read_model_config
from octavo.quality.measure import Reader, side_config
from octavo.quality.statistics import Bounds, bound_loss
from octavo.quality.windows import Window, cut_windows
from octavo.texts import TextTokenizer, read_texts

_CHUNK_TOKENS = 256


def make_windows(folder: Path, text: Path, context: int | None) -> list[Window]:
    """As the gate cuts them."""
    config = read_model_config(folder)
    tokenizer = TextTokenizer(folder, config.vocab_size)
    documents = tokenizer.documents(read_texts(text))
    return cut_windows(documents, tokenizer.prefix, context or config.max_position)


def document_nll(
    folder: Path, windows: Sequence[Window], context: int, dtype: str = "auto", threads: int = 1
) -> NDArray[np.float64]:
    """Summed over each document's scored tokens, nats."""
    reader = Reader(side_config(folder, context, {"dtype": dtype, "num_threads": threads}))
    sums = np.zeros(max(window.document for window in windows) + 1)
    for window in windows:
        read = len(window.token_ids) - 1  # the last is only predicted
        for begin in range(0, read, _CHUNK_TOKENS):
            end = min(begin + _CHUNK_TOKENS, read)
            log_probs = reader.log_probs(window, begin, end)
            targets = torch.tensor(window.token_ids[end + 1 - len(log_probs) : end + 1])
            nll = -log_probs.gather(1, targets[:, None]).sum(dtype=torch.float64)
            sums[window.document] += float(nll)
    return sums


def document_tokens(windows: Sequence[Window]) -> NDArray[np.float64]:
    numbers = [window.document for window in windows]
    scored = np.array([window.num_scored for window in windows], dtype=np.float64)
    return np.bincount(numbers, scored).astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("baseline", type=Path)
    parser.add_argument("candidates", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, required=True, help=".jsonl or .txt")
    parser.add_argument("--context", type=int, help="tokens of a window (default: the model's)")
    parser.add_argument("--dtype", default="auto", help="of the computation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    context = args.context or read_model_config(args.baseline).max_position
    windows = make_windows(args.baseline, args.text, context)
    tokens = document_tokens(windows)
    nll = {}
    for folder in (args.baseline, *args.candidates):
        nll[folder.name] = document_nll(folder, windows, context, args.dtype, args.threads)
    print(f"{len(tokens)} documents, {tokens.sum():.0f} tokens\n")
    print("| | perplexity | against | loss | 95 % bounds |\n|---|---|---|---|---|")
    rows = []
    for first, second in combinations(nll, 2):
        own: Bounds = bound_loss(nll[second] - nll[first], tokens)
        perplexity = math.exp(nll[second].sum() / tokens.sum())
        print(
            f"| {second} | {perplexity:.3f} | {first} | {own.estimate:+.2%} "
            f"| {own.lower:+.2%} to {own.upper:+.2%} |"
        )
        rows.append({"name": second, "against": first, "perplexity": perplexity, **asdict(own)})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
