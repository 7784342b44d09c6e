"""octavo-tiny's tokenizer and chat format: byte-level BPE trained on the training text alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from corpus import Document, stable_hash
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
ROLES = ("user", "assistant", "system")
SPECIAL_TOKENS = [BOS, EOS, PAD, *(f"<|{role}|>" for role in ROLES)]
# Words with their leading blank, digits in threes, punctuation, runs of blanks.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CHAT_PROMPT = "Explain: {title}"
CHAT_SHARE = 0.2
MIN_SECTION_CHARS = 200


def train_tokenizer(documents: Iterable[Document], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with the special tokens first and BOS put before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in documents), trainer)
    assert tokenizer.get_vocab_size() == vocab_size
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """tokenizer.json and the two files that make `transformers.AutoTokenizer` load it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "additional_special_tokens": SPECIAL_TOKENS[3:],
        "added_tokens_decoder": added,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", config)
    extra = {"additional_special_tokens": SPECIAL_TOKENS[3:]}
    _write_json(folder / "special_tokens_map.json", special | extra)


def sections(doc: Document) -> Iterator[tuple[str, str]]:
    """(title, body) of every section long enough to answer a question."""
    for part in re.split(r"(?m)^(?=#{1,6} )", doc.text):
        heading, _, body = part.partition("\n")
        title = heading.lstrip("# ").strip()
        if heading.startswith("#") and title and len(body.strip()) >= MIN_SECTION_CHARS:
            yield title, body.strip()


def training_items(documents: Iterable[Document]) -> Iterator[str]:
    """Texts as the tokenizer sees them: whole documents, and a fifth of them cut into chats."""
    for doc in documents:
        if int(stable_hash("chat/" + doc.id)[:8], 16) < CHAT_SHARE * 2**32:
            for title, body in sections(doc):
                prompt = CHAT_PROMPT.format(title=title)
                yield f"{BOS}<|user|>{prompt}<|assistant|>{body}{EOS}"
        else:
            yield f"{BOS}{doc.text}{EOS}"


def encode_items(
    tokenizer: Tokenizer, documents: Iterable[Document]
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """All items as one uint16 array of tokens and the offsets [items + 1] of each in it."""
    texts = list(training_items(documents))
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    lengths = np.array([len(e.ids) for e in encoded], dtype=np.int64)
    tokens = np.concatenate([np.array(e.ids, dtype=np.uint16) for e in encoded])
    return tokens, np.concatenate([np.zeros(1, dtype=np.int64), lengths.cumsum()])


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
