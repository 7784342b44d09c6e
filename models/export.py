"""Write the files that `transformers` loads, and prove that it loads the same model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from corpus import read_jsonl
from safetensors.torch import save_file
from tiny_model import TinyConfig, TinyLlama, export_state_dict
from tiny_tokenizer import BOS, EOS, PAD, save_tokenizer
from tokenizers import Tokenizer
from training import load_trained

MAX_WEIGHT_BYTES = 32_000_000  # both models live in git


def round_to_bf16(model: TinyLlama) -> TinyLlama:
    """The model with the weights that are shipped, computed in fp32."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16).to(torch.float32))
    return model.eval()


def export_model(work: Path, run: Path, out: Path) -> None:
    """config, weights, tokenizer and held-out documents to `out`; the checkpoint lies in `run`."""
    model = round_to_bf16(load_trained(run / "checkpoint.pt")[0])
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    bos, eos, pad = (tokenizer.token_to_id(t) for t in (BOS, EOS, PAD))
    cfg = model.cfg
    assert isinstance(cfg, TinyConfig)
    save_tokenizer(tokenizer, out, cfg.context_length)
    generation = {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "do_sample": False,
    }
    _write_json(out / "config.json", cfg.to_hf(bos, eos, pad))
    _write_json(out / "generation_config.json", generation)
    shutil.copyfile(work / "heldout.jsonl", out / "heldout.jsonl")
    write_licences(work, out / "heldout-licences.txt")
    partial = out / "model.safetensors.partial"
    tensors = export_state_dict(model, torch.bfloat16)
    save_file(tensors, str(partial), metadata={"format": "pt"})
    assert partial.stat().st_size < MAX_WEIGHT_BYTES
    os.chmod(partial, 0o644)
    partial.replace(out / "model.safetensors")
    check_against_transformers(model, out)


def write_licences(work: Path, path: Path) -> None:
    """The Debian copyright file of every package with a held-out document, each text once."""
    users: dict[str, list[str]] = {}
    for package in sorted({d.package for d in read_jsonl(work / "heldout.jsonl")}):
        source = work / "x" / package / "usr/share/doc" / package / "copyright"
        users.setdefault(source.read_text(encoding="utf-8").strip(), []).append(package)
    parts = [f"{'=' * 72}\n{', '.join(names)}\n{'=' * 72}\n\n{t}\n" for t, names in users.items()]
    path.write_text("\n".join(parts), encoding="utf-8")


def check_against_transformers(model: TinyLlama, folder: Path) -> float:
    """Largest difference of the fp32 logits to `LlamaForCausalLM`, over the largest logit; raises
    above 1e-4."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The block table maps positions to blocks.")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Explain: Blocks"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == f"{BOS}<|user|>Explain: Blocks<|assistant|>", chat
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(6, model.cfg.vocab_size, (2, 300), generator=generator)
    tokens[0, : len(ids)] = torch.tensor(ids)
    with torch.no_grad():
        logits = other(tokens).logits
        difference = ((model.logits(tokens) - logits).abs().max() / logits.abs().max()).item()
    if difference > 1e-4:
        raise ValueError(
            f"logits differ from transformers by a share of {difference:.2e}, limit 1e-4"
        )
    return difference


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
