#!/usr/bin/env python3
"""What a format of KV memory costs in quality: the model reads real text from a quantized cache.

    python bench/kv_quality.py MODEL --text FILE_OR_DIR [--formats auto int8 …] [--json OUT]

The text (.txt and .md files, or .jsonl with a "text" in each line) is cut into windows of the
model's full context, or --length. Each window goes through the engine's own decoder in chunks of
--chunk tokens, so that attention reads most keys and values back from the cache, in its format;
each token is scored given the true ones before it. For each format, over all tokens:

    perplexity   exp of the mean negative log likelihood, and its ratio to the reference's
    kl           mean KL divergence of the next token's distribution from the reference's, nats
    top1         how often the most likely token is the reference's

The reference is the cache in the type of the computation ("auto"); --dtype float32 leaves only the
cache's rounding to tell the formats apart. A format "int8:0,3" stores layers 0 and 3 as computed.
fp8 is emulated where the device lacks it: casts are torch's, so results are the same.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.execution.forward_batch import ForwardBatch
from octavo.execution.kv_cache import KVCache
from octavo.models.decoder import Decoder
from octavo.models.model_config import read_model_config
from octavo.quantization.kv import KVLayout, layer_formats

BLOCK_SIZE = 16
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class KVQuality:
    """Of one format, over `tokens` scored tokens."""

    format: str
    bytes_per_token: float
    tokens: int
    perplexity: float
    perplexity_ratio: float
    kl_nats: float
    top1_ratio: float


class Reader:
    """A model that reads windows of text through a KV cache in one format."""

    def __init__(self, folder: Path, dtype: str, length: int, chunk: int) -> None:
        self.config = read_model_config(folder)
        self.dtype = self.config.dtype if dtype == "auto" else dtype
        self.length = min(length or self.config.max_position, self.config.max_position)
        self.chunk = chunk
        self.model = Decoder(self.config, folder, getattr(torch, self.dtype), self.length)

    def cache(self, kv_format: str) -> KVCache:
        name, _, skipped = kv_format.partition(":")
        skip_layers = [int(layer) for layer in skipped.split(",") if layer]
        layout = KVLayout(
            layer_formats(name, skip_layers, self.config.num_layers, self.dtype),
            BLOCK_SIZE, self.config.num_kv_heads, self.config.head_dim,
        )  # fmt: skip
        return KVCache.allocate(layout, -(-self.length // BLOCK_SIZE), CPU)

    @torch.inference_mode()
    def log_probs(self, window: Sequence[int], cache: KVCache) -> Iterator[Tensor]:
        """Of each next token, chunk by chunk, [chunk, vocabulary] float32."""
        assert len(window) <= self.length
        # The last block first: a table that is not the identity.
        table = torch.arange(cache.num_blocks - 1, -1, -1)
        for begin in range(0, len(window), self.chunk):
            tokens = torch.tensor(window[begin : begin + self.chunk])
            positions = begin + torch.arange(len(tokens))
            batch = ForwardBatch(
                token_ids=tokens,
                positions=positions,
                slot_mapping=table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
                block_tables=table[None],
                query_start=torch.tensor([0, len(tokens)]),
                context_lens=torch.tensor([begin + len(tokens)]),
                sample_indices=torch.arange(len(tokens)),
                num_decodes=0,
            )
            yield self.model.forward(batch, cache).log_softmax(-1)


def measure(
    reader: Reader, windows: Sequence[Sequence[int]], formats: Sequence[str]
) -> list[KVQuality]:
    """The formats read each chunk side by side, so that no distribution has to be kept."""
    names = ["auto", *(name for name in formats if name != "auto")]
    caches = [reader.cache(name) for name in names]
    tokens, nll, kl, top1 = 0, *(torch.zeros(len(names), dtype=torch.float64) for _ in range(3))
    for number, window in enumerate(windows):
        streams = zip(*(reader.log_probs(window, cache) for cache in caches), strict=True)
        for chunk, together in enumerate(streams):
            begin = chunk * reader.chunk
            following = torch.tensor(window[begin + 1 : begin + reader.chunk + 1])
            scored = len(following)  # the window's last token has nothing to predict
            tokens += scored
            reference = together[0][:scored].double()
            for index, log_probs in enumerate(together):
                own = log_probs[:scored].double()
                nll[index] += F.nll_loss(own, following, reduction="sum")
                kl[index] += F.kl_div(own, reference, log_target=True, reduction="sum")
                top1[index] += (own.argmax(-1) == reference.argmax(-1)).sum()
        print(f"window {number + 1} of {len(windows)}", file=sys.stderr, flush=True)
    perplexity = (nll / tokens).exp()
    assert perplexity.isfinite().all()
    return [
        KVQuality(
            format=name,
            bytes_per_token=cache.block_bytes / BLOCK_SIZE,
            tokens=tokens,
            perplexity=float(perplexity[index]),
            perplexity_ratio=float(perplexity[index] / perplexity[0]),
            kl_nats=float(kl[index]) / tokens,
            top1_ratio=float(top1[index]) / tokens,
        )
        for index, (name, cache) in enumerate(zip(names, caches, strict=True))
    ]


def read_texts(path: Path) -> list[str]:
    """Of a file or, in the order of their names, of a folder's."""
    kinds = (".jsonl", ".txt", ".md")
    files = sorted(f for f in path.rglob("*") if f.suffix in kinds) if path.is_dir() else [path]
    texts = []
    for file in files:
        content = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            texts += [json.loads(line)["text"] for line in content.splitlines()]
        else:
            texts.append(content)
    return texts


def make_windows(folder: Path, texts: Sequence[str], length: int) -> list[list[int]]:
    """The texts' tokens in windows of `length`, one text after the other; what is left over at
    the end is not read."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stream = [token for text in texts for token in tokenizer.encode(text).ids]
    return [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="checkpoint folder with a tokenizer.json")
    parser.add_argument("--text", type=Path, required=True, help="file or folder")
    parser.add_argument("--formats", nargs="+", default=["bfloat16", "int8", "fp8"])
    parser.add_argument("--dtype", default="auto", help="of the computation")
    parser.add_argument("--length", type=int, default=0, help="tokens of a window")
    parser.add_argument("--chunk", type=int, default=128, help="tokens of a step")
    parser.add_argument("--windows", type=int, help="at most so many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began = time.perf_counter()
    reader = Reader(args.model, args.dtype, args.length, args.chunk)
    windows = make_windows(args.model, read_texts(args.text), reader.length)[: args.windows]
    if not windows:
        sys.exit(f"{args.text}: less than one window of {reader.length} tokens")
    results = measure(reader, windows, args.formats)
    facts = {
        "model": args.model.name, "dtype": reader.dtype, "context": reader.length,
        "windows": len(windows), "chunk": args.chunk, "seconds": time.perf_counter() - began,
    }  # fmt: skip
    print("| format | bytes/token | perplexity | to reference | KL, nats | top 1 |")
    print("|---|---|---|---|---|---|")
    for own in results:
        change = math.expm1(math.log(own.perplexity_ratio))
        print(
            f"| {own.format} | {own.bytes_per_token:.0f} | {own.perplexity:.4f} | {change:+.3%} "
            f"| {own.kl_nats:.2e} | {own.top1_ratio:.2%} |"
        )
    report = {**facts, "formats": [asdict(own) for own in results]}
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
