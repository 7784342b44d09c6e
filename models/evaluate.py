"""Bits per byte on the held-out documents: the model, xz and a Kneser-Ney 5-gram.

All three spend their bits on the same UTF-8 bytes; none has seen the documents.
"""

from __future__ import annotations

import lzma
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from corpus import Document, read_jsonl
from export import round_to_bf16
from ngram import KneserNey
from tiny_model import TinyLlama
from tiny_tokenizer import CHAT_PROMPT, EOS
from tokenizers import Tokenizer

NGRAM_ORDER = 5
PROMPTS = (
    "The cache is",
    "To install the package, run",
    "A transaction is a group of statements that",
    "If the server does not respond within the given time,",
    "When a file is opened,",
)
CHAT_TITLES = ("Configuration", "Transactions", "Error handling")
GREEDY_TOKENS = 96


def model_bits(model: TinyLlama, ids: list[int], stride: int = 1024) -> float:
    """Bits of ids[1:]; past the context length the window moves on by `stride` tokens."""
    length, bits, scored = model.cfg.context_length, 0.0, 0
    start = 0
    while scored < len(ids) - 1:
        window = torch.tensor(ids[start : start + length + 1])
        new = len(window) - 1 - (scored - start)
        with torch.no_grad():
            logits = model.logits(window[:-1].unsqueeze(0))[0, -new:]
        loss = F.cross_entropy(logits, window[-new:], reduction="sum")
        bits += loss.item() / math.log(2)
        scored += new
        start = max(0, min(start + stride, len(ids) - 1 - length))
    return bits


def generate(model: TinyLlama, ids: list[int], eos: int, count: int = GREEDY_TOKENS) -> list[int]:
    """Greedy continuation in fp32, without a cache; stops before the end token."""
    ids, given = list(ids), len(ids)
    for _ in range(count):
        with torch.no_grad():
            token = int(model.logits(torch.tensor([ids]))[0, -1].argmax())
        if token == eos:
            break
        ids.append(token)
    return ids[given:]


def xz_scores(held: list[Document], train: Path) -> dict[str, float]:
    """Bits per byte of `xz -9` on the texts joined, alone and after the training text.

    The second compresses training text + held-out text and subtracts the training text alone; both
    together must fit the 64 MiB dictionary.
    """
    text = "\n\n".join(d.text for d in held).encode()
    size = sum(len(d.text.encode()) for d in held)
    before = "\n\n".join(d.text for d in read_jsonl(train)).encode() + b"\n\n"
    assert len(before) + len(text) < 64 << 20
    alone = len(lzma.compress(text, preset=9))
    primed = len(lzma.compress(before + text, preset=9)) - len(lzma.compress(before, preset=9))
    return {"xz_bits_per_byte": 8 * alone / size, "xz_primed_bits_per_byte": 8 * primed / size}


def samples(model: TinyLlama, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Greedy continuations of fixed prompts, plain and chat, verbatim."""
    eos = tokenizer.token_to_id(EOS)
    assert eos is not None
    prompts = [(p, p) for p in PROMPTS]
    prompts += [
        (f"user: {text}", f"<|user|>{text}<|assistant|>")
        for text in (CHAT_PROMPT.format(title=t) for t in CHAT_TITLES)
    ]
    out = []
    for shown, prompt in prompts:
        answer = generate(model, tokenizer.encode(prompt).ids, eos)
        out.append({"prompt": shown, "continuation": tokenizer.decode(answer)})
    return out


def baselines(work: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """The scores that need no network: xz and Kneser-Ney on the held-out documents."""
    held = list(read_jsonl(work / "heldout.jsonl"))
    tokens = np.load(work / "tokens.npy").astype(np.int64)
    ngram = KneserNey(tokens, NGRAM_ORDER, tokenizer.get_vocab_size())
    error = ngram.check_normalised(tokens)
    if error > 1e-9:
        raise ValueError(f"Kneser-Ney probabilities sum to 1 within {error:.1e}, limit 1e-9")
    bits = {d.id: -float(ngram.score(np.array(tokenizer.encode(d.text).ids)).sum()) for d in held}
    size = sum(len(d.text.encode()) for d in held)
    return {
        "ngram_bits": bits,
        "ngram_bits_per_byte": sum(bits.values()) / size,
        "ngram_normalisation_error": error,
        **xz_scores(held, work / "train.jsonl"),
    }


def evaluate(
    work: Path, model: TinyLlama, tokenizer: Tokenizer, baseline: dict[str, Any]
) -> dict[str, Any]:
    """The model's scores beside the baselines', per byte, and the samples of the card."""
    model = round_to_bf16(model)
    held = list(read_jsonl(work / "heldout.jsonl"))
    encoded = [tokenizer.encode(d.text).ids for d in held]
    bits = {d.id: model_bits(model, ids) for d, ids in zip(held, encoded, strict=True)}
    sizes = {d.id: len(d.text.encode()) for d in held}
    ngram = baseline["ngram_bits"]
    tokens, size = sum(len(ids) - 1 for ids in encoded), sum(sizes.values())
    return {
        "bytes": size,
        "documents": len(held),
        "tokens": tokens,
        "model_bits_per_byte": sum(bits.values()) / size,
        "model_loss_nats": sum(bits.values()) * math.log(2) / tokens,
        "documents_won_against_ngram": sum(bits[i] < ngram[i] for i in bits),
        **{k: v for k, v in baseline.items() if k != "ngram_bits"},
        "by_document": {i: {"model": bits[i] / n, "ngram": ngram[i] / n} for i, n in sizes.items()},
        "samples": samples(model, tokenizer),
    }
