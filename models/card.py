"""The model card: every number in it is read from the run that made the model."""

from __future__ import annotations

from typing import Any

from sizes import Size
from tiny_tokenizer import CHAT_PROMPT, CHAT_SHARE
from training import TrainConfig

INTRO = """---
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [llama, documentation, tiny]
---

# {name}

A language model of {parameters:.1f} million parameters, trained from nothing on software
documentation. {why}

| | |
|---|---|
| architecture | Llama: RMSNorm, rotary positions, SwiGLU, tied embeddings |
| parameters | {count:,} |
| layers, hidden, feed-forward | {layers}, {hidden}, {ffn} |
| attention | grouped-query: {heads} query heads, {kv_heads} key/value heads, head_dim {head_dim} |
| vocabulary | {vocab:,} tokens, byte-level BPE (any UTF-8 text can be encoded) |
| context | {context:,} tokens |
| weights | bf16 safetensors |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("models/{name}")
model = AutoModelForCausalLM.from_pretrained("models/{name}")
ids = tokenizer("When a file is opened,", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=60)[0]))
```
"""

SCORES = """
## Scores

Bits per UTF-8 byte on the {documents} held-out documents of `heldout.jsonl` ({bytes:,} bytes of
text, {tokens:,} tokens), less is better:

| predictor | bits per byte |
|---|---|
| **{name}**, the bf16 weights of this folder | **{model_bits_per_byte:.3f}** |
| interpolated Kneser-Ney 5-gram | {ngram_bits_per_byte:.3f} |
| `xz -9`, with the training text before it | {xz_primed_bits_per_byte:.3f} |
| `xz -9` | {xz_bits_per_byte:.3f} |

{name} is better than the 5-gram on {documents_won_against_ngram} of the {documents} documents.
Its mean loss is {model_loss_nats:.3f} nats per token (perplexity {perplexity:.1f}).

How each was measured:

- **{name}**: weights rounded to bf16, computed in fp32. Every document starts after the
  begin token, which is given; every later token is scored once. Beyond 2,048 tokens the window
  moves on by 1,024, so a scored token has at least 1,024 tokens before it. The end token is not
  scored.
- **Kneser-Ney**: order 5, one absolute discount per order estimated from the counts
  (n1 / (n1 + 2 n2)), interpolated down to the uniform distribution, trained on the same
  {train_tokens:,} tokens of the same tokenizer. Its probabilities over the whole vocabulary sum to
  1 within {ngram_normalisation_error:.0e} at random contexts, seen and unseen.
- **`xz -9`**: Python's `lzma.compress(preset=9)` on the held-out texts joined by blank lines,
  container included. With the training text: the compressed size of training + held-out text, less
  that of the training text ({primed_note}).
"""

DATA = """
## Data

English prose of {packages} Debian 12 packages: {train_documents:,} pages,
{train_bytes:,} bytes, {train_tokens:,} tokens. The main content of each HTML page is taken,
without navigation, tables and long listings; headings become `#` lines; text is NFKC-normalised.
Pages must read as prose (at least a fifth of the words are the commonest English function words).
Paragraphs that repeat an earlier one (half of their 8-word shingles) are dropped, and so are
training paragraphs that share a fifth of their shingles with a held-out document.

The held-out documents are whole pages of 4,000 to 20,000 characters, at most two from one package,
chosen by a hash of their path before anything was trained. They keep the licence of their package:
`heldout-licences.txt` holds the copyright files.

`models/octavo-tiny/calibration.jsonl` is for methods of quantization that read text: stretches of
some 2,000 characters of 128 training documents, chosen by `models/calibration.py` with a seed from
packages that have a held-out document too, so the same copyright files cover it.
Nothing of it is held out.

| package | version | licence | characters used | documents held out | SHA-256 of the .deb |
|---|---|---|---|---|---|
"""

RECIPE = """
SHA-256 of the training text (`train.jsonl`): `{train_sha256}`;
of `heldout.jsonl`: `{held_out_sha256}`.

## Recipe

`{command}` does all of it: corpus, tokenizer, training, scores, this folder. It
resumes where it stopped. Seed {seed}; {steps:,} steps of {tokens_per_step:,} tokens
({total:.1f} million tokens, {epochs:.2f} epochs) in {minutes:.0f} minutes on {machine}.

- Muon (rate {muon_lr}, decay {weight_decay}) for the matrices of the layers, AdamW (rate {adam_lr})
  for embedding and norms; {warmup_steps} steps of warm-up, then the full rate; it falls linearly
  between these steps: {corners}. Gradients clipped at {clip_norm}.
- bf16 autocast over fp32 weights. Rows of {short_length} tokens, and of {context:,} for the last
  {long_steps} steps, so the whole context is trained.
- Documents are shuffled each epoch and packed between `<|begin_of_text|>` and `<|end_of_text|>`.
- {chat:.0%} of the documents are cut into sections and shown as chat.

The data order, the initial weights and the schedule follow from the seed. Matrix libraries round
differently on other machines, so a new run gives the same scores within noise, not the same bytes.

## Chat

The template renders `<|begin_of_text|><|user|>{prompt}<|assistant|>` and the model ends its answer
with `<|end_of_text|>`. The model learned one kind of question, `{prompt}`; it is no assistant.

## Samples

Greedy, verbatim, up to 96 tokens; the prompt in bold.
"""

LIMITS = """
## Limits

It knows the style of documentation, not its facts: names, versions, options and commands that it
writes are often invented. English and code snippets only. Greedy text repeats itself after a while.
It was not tuned for safety or instructions. Use it to test and measure a serving system, not to
answer anyone.
"""


def render(
    name: str,
    size: Size,
    facts: dict[str, Any],
    scores: dict[str, Any],
    cfg: TrainConfig,
    parameters: int,
    train_tokens: int,
    seconds: float,
) -> str:
    """The README.md of the model folder."""
    total, model_cfg = cfg.steps * cfg.tokens_per_step, size.network
    text = INTRO.format(
        name=name,
        why=size.why.format(megabytes=parameters * 2 / 1e6),
        parameters=parameters / 1e6,
        count=parameters,
        layers=model_cfg.num_layers,
        hidden=model_cfg.hidden_size,
        ffn=model_cfg.intermediate_size,
        heads=model_cfg.num_heads,
        kv_heads=model_cfg.num_kv_heads,
        head_dim=model_cfg.head_dim,
        vocab=model_cfg.vocab_size,
        context=model_cfg.context_length,
    )
    text += SCORES.format(
        name=name,
        **{k: v for k, v in scores.items() if k not in ("samples", "by_document")},
        perplexity=2.718281828 ** scores["model_loss_nats"],
        train_tokens=train_tokens,
        primed_note="the dictionary of 64 MiB holds all of it",
    )
    text += DATA.format(
        **{k: v for k, v in facts.items() if k != "packages"},
        train_tokens=train_tokens,
        packages=len(facts["packages"]),
    )
    text += "".join(_package_row(p) for p in facts["packages"])
    text += RECIPE.format(
        command="python models/train.py" + ("" if name == "octavo-tiny" else f" --model {name}"),
        machine=size.machine,
        train_sha256=facts["train_sha256"],
        held_out_sha256=facts["held_out_sha256"],
        seed=cfg.seed,
        steps=cfg.steps,
        tokens_per_step=cfg.tokens_per_step,
        total=total / 1e6,
        epochs=total / train_tokens,
        minutes=seconds / 60,
        muon_lr=cfg.muon_lr,
        adam_lr=cfg.adam_lr,
        weight_decay=cfg.weight_decay,
        warmup_steps=cfg.warmup_steps,
        corners=", ".join(f"{share:.2f} at {step:,}" for step, share in cfg.rate),
        clip_norm=cfg.clip_norm,
        short_length=cfg.short_length,
        long_steps=cfg.steps - cfg.long_from,
        context=model_cfg.context_length,
        chat=CHAT_SHARE,
        prompt=CHAT_PROMPT,
    )
    for sample in scores["samples"]:
        text += _sample(sample["prompt"], sample["continuation"])
    return text + LIMITS


def _package_row(p: dict[str, Any]) -> str:
    return (
        f"| {p['package']} | {p['version']} | {p['licence']} | {p['train_chars']:,}"
        f" | {p['held_out'] or ''} | `{p['deb_sha256']}` |\n"
    )


def _sample(prompt: str, continuation: str) -> str:
    """The prompt in bold, the continuation as it came in a fence longer than any inside it."""
    return f"\n**{prompt}**\n\n~~~~text\n{continuation}\n~~~~\n"
