"""Toy checkpoints with a tokenizer, for whole answers from text to text."""

import random
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from factories import VOCAB, write_checkpoint

PAD, BOS, EOS = 0, 1, 2
_SPECIAL = ["<pad>", "<s>", "</s>"]

# What the scripted model says after "A", one token for each byte, and then ends.
SCRIPT = "BCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{😀|}~"


def byte_level_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE with exactly the toy model's vocabulary. Encoding begins with <s>."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lower_case_words(), trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def _lower_case_words() -> list[str]:
    letters = random.Random(0)
    words = ["".join(letters.choices("aeilort", k=letters.randint(2, 6))) for _ in range(300)]
    return [" ".join(letters.choices(words, k=2000)), "日本語 é " * 50]


def write_random_checkpoint(folder: Path) -> Path:
    """Random weights: what follows depends on the whole prompt."""
    write_checkpoint(folder)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def write_scripted_checkpoint(folder: Path) -> Path:
    """A model that knows one thing: after each byte of SCRIPT comes the next, then the end.

    All layers add nothing to the residual stream, so the logits are those of the last token
    alone: its successor's row of the head is its own embedding.
    """
    write_checkpoint(folder, tie_word_embeddings=False)
    tokenizer = byte_level_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    script = tokenizer.encode("A" + SCRIPT, add_special_tokens=False).ids
    assert len(script) == len(("A" + SCRIPT).encode()) == len(set(script))
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    tensors["model.norm.weight"].fill_(1)
    embedding = tensors["model.embed_tokens.weight"]
    embedding.sign_()
    head = torch.zeros_like(embedding)
    for token, successor in zip(script, [*script[1:], EOS], strict=True):
        head[successor] = embedding[token] / 10
    head[script[0]] = embedding[EOS] / 10  # past an ignored end it begins anew
    tensors["lm_head.weight"] = head
    save_file(tensors, folder / "model.safetensors")
    return folder
