#!/usr/bin/env python3
"""What formats of KV memory and of weights cost in quality: the model reads real text with them.

    python bench/quality.py MODEL --text FILE_OR_DIR [--kv int8 …] [--weights int4/64 …]

The text (.txt and .md files, or .jsonl with a "text" in each line) is cut into windows of the
model's full context, or --length. Each window goes through the engine's own decoder in chunks of
--chunk tokens, so that attention reads most keys and values back from the cache, in its format;
each token is scored given the true ones before it. For each format, over all tokens:

    perplexity   exp of the mean negative log likelihood, and its ratio to the reference's
    kl           mean KL divergence of the next token's distribution from the reference's, nats
    top1         how often the most likely token is the reference's

The reference has cache and weights in the type of the computation; --dtype float32 leaves only the
formats' rounding to tell them apart. One thing is in another format at a time. --kv int8:0,3 stores
layers 0 and 3 as computed; --weights int4/64 has a scale for each 64 weights, and under all formats
of weights the lm_head has 8 bits.

The kernels are the engine's own (--kernels auto); fp8 needs --kernels reference, which emulates it
where the device lacks it: casts are torch's, so results are the same.
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

from octavo.config import EngineConfig
from octavo.execution.forward_batch import ForwardBatch
from octavo.execution.kv_cache import KVCache
from octavo.kernels import cpu
from octavo.kernels.cpu import Library
from octavo.models.decoder import Decoder
from octavo.models.model_config import read_model_config
from octavo.quantization.kv import KVLayout, layer_formats
from octavo.quantization.weights import weight_format

BLOCK_SIZE = 16
CPU = torch.device("cpu")


AS_COMPUTED = "as computed"


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one format, over `tokens` scored tokens.

    bytes_per_token: of KV memory. weight_bytes: of what a decode step reads
    """

    format: str
    bytes_per_token: float
    weight_bytes: int
    tokens: int
    perplexity: float
    perplexity_ratio: float
    kl_nats: float
    top1_ratio: float


class Reader:
    """A model that reads windows of text with weights in one format, KV memory in another.

    weights: as "int4/64"; "auto" is as computed. library: None for the reference operators
    """

    def __init__(
        self,
        folder: Path,
        dtype: str,
        length: int,
        chunk: int,
        weights: str = "auto",
        library: Library | None = None,
    ) -> None:
        self.config = read_model_config(folder)
        self.dtype = self.config.dtype if dtype == "auto" else dtype
        self.length = min(length or self.config.max_position, self.config.max_position)
        self.chunk = chunk
        name, _, group = weights.partition("/")
        own = weight_format(name, int(group or 128), self.dtype)
        self.model = Decoder(
            self.config, folder, getattr(torch, self.dtype), self.length, own, library=library
        )

    def cache(self, kv_format: str = "auto") -> KVCache:
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
                max_query_len=len(tokens),
            )
            yield self.model.forward(batch, cache).log_softmax(-1)


Reading = tuple[str, Reader, KVCache]  # the format's name first


def measure(readings: Sequence[Reading], windows: Sequence[Sequence[int]]) -> list[Quality]:
    """Against the first of `readings`. All read each chunk side by side, so that no distribution
    has to be kept."""
    names = [name for name, _, _ in readings]
    chunk_tokens = readings[0][1].chunk
    tokens, nll, kl, top1 = 0, *(torch.zeros(len(names), dtype=torch.float64) for _ in range(3))
    for number, window in enumerate(windows):
        each = [reader.log_probs(window, cache) for _, reader, cache in readings]
        streams = zip(*each, strict=True)
        for chunk, together in enumerate(streams):
            begin = chunk * chunk_tokens
            following = torch.tensor(window[begin + 1 : begin + chunk_tokens + 1])
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
        Quality(
            format=name,
            bytes_per_token=cache.block_bytes / BLOCK_SIZE,
            weight_bytes=reader.model.step_weight_bytes,
            tokens=tokens,
            perplexity=float(perplexity[index]),
            perplexity_ratio=float(perplexity[index] / perplexity[0]),
            kl_nats=float(kl[index]) / tokens,
            top1_ratio=float(top1[index]) / tokens,
        )
        for index, (name, reader, cache) in enumerate(readings)
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
    parser.add_argument("--kv", nargs="+", default=[], metavar="FORMAT", help="of KV memory")
    parser.add_argument("--weights", nargs="+", default=[], metavar="FORMAT[/GROUP]")
    parser.add_argument("--kernels", default="auto", help="as in engine.toml (default: auto)")
    parser.add_argument("--dtype", default="auto", help="of the computation")
    parser.add_argument("--length", type=int, default=0, help="tokens of a window")
    parser.add_argument("--chunk", type=int, default=128, help="tokens of a step")
    parser.add_argument("--windows", type=int, help="at most so many")
    parser.add_argument("--every", type=int, default=1, help="only each such window")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began = time.perf_counter()
    if "fp8" in args.kv and args.kernels != "reference":
        sys.exit("--kv fp8: the native kernels of the CPU have none; add --kernels reference")
    library = None
    if args.kernels != "reference":
        cache = EngineConfig(model=args.model).kernel_cache
        library = cpu.load(cache, args.kernels, args.threads)

    def reader_of(weights: str) -> Reader:
        return Reader(args.model, args.dtype, args.length, args.chunk, weights, library)

    reader = reader_of("auto")
    readings: list[Reading] = [(AS_COMPUTED, reader, reader.cache())]
    readings += [(f"KV {name}", reader, reader.cache(name)) for name in args.kv]
    for name in args.weights:
        other = reader_of(name)
        readings.append((f"weights {name}", other, other.cache()))
    windows = make_windows(args.model, read_texts(args.text), reader.length)
    windows = windows[:: args.every][: args.windows]
    if not windows:
        sys.exit(f"{args.text}: less than one window of {reader.length} tokens")
    results = measure(readings, windows)
    facts = {
        "model": args.model.name, "dtype": reader.dtype, "context": reader.length,
        "windows": len(windows), "chunk": args.chunk,
        "kernels": library.isa if library else "reference", "seconds": time.perf_counter() - began,
    }  # fmt: skip
    print(
        "| format | KV bytes/token | weights, MB | perplexity | to reference | KL, nats | top 1 |"
    )
    print("|---|---|---|---|---|---|---|")
    for own in results:
        change = math.expm1(math.log(own.perplexity_ratio))
        print(
            f"| {own.format} | {own.bytes_per_token:.0f} | {own.weight_bytes / 1e6:.1f} "
            f"| {own.perplexity:.4f} | {change:+.3%} "
            f"| {own.kl_nats:.2e} | {own.top1_ratio:.2%} |"
        )
    report = {**facts, "formats": [asdict(own) for own in results]}
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
