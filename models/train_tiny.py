"""Build octavo-tiny from nothing: `python models/train_tiny.py`.

Five steps, each skipped while its output is there and its inputs are unchanged: corpus, tokenizer,
train, evaluate, export. Stop it whenever you like; the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import card
import corpus
import evaluate
import ngram
import numpy as np
import tiny_tokenizer
import torch
import typer
from export import export_model
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tiny_model import TinyConfig
from tokenizers import Tokenizer
from training import Progress as StepReport
from training import TokenStream, TrainConfig, Trainer, load_trained

HERE = Path(__file__).resolve().parent
DEFAULT_WORK = HERE.parent / ".cache" / "octavo-tiny"
RECIPE = TrainConfig()
console = Console()


class Step(str, Enum):
    """The steps in their order."""

    corpus = "corpus"
    tokenizer = "tokenizer"
    train = "train"
    evaluate = "evaluate"
    export = "export"


def done(marker: Path, inputs: str, outputs: list[Path]) -> bool:
    """True when `marker` says that `outputs` were made from `inputs`."""
    return marker.exists() and marker.read_text() == inputs and all(o.exists() for o in outputs)


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def make_corpus(work: Path) -> dict[str, Any]:
    """Documents to train on and documents held out, with the facts about them."""
    facts_path, marker = work / "corpus.json", work / "corpus.done"
    inputs = digest(corpus.SOURCES, corpus.sha256_file(Path(corpus.__file__)))
    outputs = [facts_path, work / "train.jsonl", work / "heldout.jsonl"]
    if not done(marker, inputs, outputs):
        console.print("corpus: fetching and reading the documentation packages")
        corpus.build_corpus(work)
        marker.write_text(inputs)
    facts: dict[str, Any] = json.loads(facts_path.read_text())
    console.print(
        f"corpus: {facts['train_documents']} documents, {facts['train_bytes']:,} bytes;"
        f" held out {facts['held_out_documents']}, {facts['held_out_bytes']:,} bytes"
    )
    return facts


def make_tokens(work: Path, model_cfg: TinyConfig, facts: dict[str, Any]) -> str:
    """Train the tokenizer and encode every training item; returns the tokenizer's hash."""
    marker = work / "tokens.done"
    source = corpus.sha256_file(Path(tiny_tokenizer.__file__))
    inputs = digest(facts["train_sha256"], model_cfg.vocab_size, source)
    outputs = [work / "tokenizer.json", work / "tokens.npy", work / "offsets.npy"]
    if not done(marker, inputs, outputs):
        console.print(f"tokenizer: learning {model_cfg.vocab_size} tokens")
        documents = list(corpus.read_jsonl(work / "train.jsonl"))
        tokenizer = tiny_tokenizer.train_tokenizer(documents, model_cfg.vocab_size)
        tiny_tokenizer.save_tokenizer(tokenizer, work, model_cfg.context_length)
        tokens, offsets = tiny_tokenizer.encode_items(tokenizer, documents)
        np.save(work / "tokens.npy", tokens)
        np.save(work / "offsets.npy", offsets)
        marker.write_text(inputs)
    count = len(np.load(work / "tokens.npy", mmap_mode="r"))
    console.print(f"tokenizer: {count:,} training tokens")
    return corpus.sha256_file(work / "tokenizer.json")


def make_weights(
    work: Path, model_cfg: TinyConfig, cfg: TrainConfig, device: str, compile_model: bool
) -> bool:
    """Train to the last step, or until a signal; False when it was stopped."""
    tokens, offsets = np.load(work / "tokens.npy"), np.load(work / "offsets.npy")
    stream = TokenStream(tokens, offsets, cfg)
    trainer = Trainer(model_cfg, cfg, stream, work, device, compile_model)
    resumed = trainer.resume()
    console.print(
        f"train: {trainer.model.num_parameters():,} parameters on {device}, "
        f"{'resuming at' if resumed else 'from'} step {trainer.step}"
    )
    columns = (
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} tok/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    smooth = 0.0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("train", total=cfg.steps, completed=trainer.step, loss=0.0, rate=0.0)

        def observe(report: StepReport) -> None:
            nonlocal smooth
            smooth = 0.95 * smooth + 0.05 * report.loss if smooth else report.loss
            bar.update(task, completed=report.step, loss=smooth, rate=report.tokens_per_s)
            if report.step % 20 == 0 and not console.is_terminal:
                console.print(
                    f"step {report.step}/{cfg.steps} loss {smooth:.4f}"
                    f" {report.tokens_per_s:.0f} tok/s {report.elapsed_s:.0f} s"
                )

        finished = trainer.run(observe)
    if not finished:
        console.print(f"train: stopped and saved at step {trainer.step}; run again to go on")
    return finished


def make_baselines(work: Path, tokenizer: Tokenizer, texts: str) -> dict[str, Any]:
    """Scores of xz and Kneser-Ney; `texts` identifies what they are measured on."""
    path, marker = work / "baselines.json", work / "baselines.done"
    inputs = digest(texts, corpus.sha256_file(Path(ngram.__file__)))
    if not done(marker, inputs, [path]):
        console.print("evaluate: xz and Kneser-Ney on the held-out documents")
        path.write_text(json.dumps(evaluate.baselines(work, tokenizer), indent=1))
        marker.write_text(inputs)
    scores: dict[str, Any] = json.loads(path.read_text())
    return scores


def make_scores(work: Path, texts: str) -> dict[str, Any]:
    """Judge the trained model and the baselines on the held-out documents."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    baseline = make_baselines(work, tokenizer, texts)
    path, marker = work / "scores.json", work / "evaluate.done"
    inputs = digest(baseline, corpus.sha256_file(work / "checkpoint.pt"))
    if not done(marker, inputs, [path]):
        console.print("evaluate: the model on the held-out documents")
        model = load_trained(work / "checkpoint.pt")[0]
        scores = evaluate.evaluate(work, model, tokenizer, baseline)
        path.write_text(json.dumps(scores, indent=1))
        marker.write_text(inputs)
    scores = json.loads(path.read_text())
    console.print(
        f"evaluate: bits per byte {scores['model_bits_per_byte']:.3f}, Kneser-Ney"
        f" {scores['ngram_bits_per_byte']:.3f}, xz {scores['xz_bits_per_byte']:.3f}"
    )
    return scores


def build(
    work: Path, out: Path, until: Step, cfg: TrainConfig, device: str, compile_model: bool
) -> None:
    """Run the steps in order, up to and with `until`."""
    model_cfg = TinyConfig()
    facts = make_corpus(work)
    if until is Step.corpus:
        return
    tokenizer_hash = make_tokens(work, model_cfg, facts)
    if until is Step.tokenizer:
        return
    inputs = digest(tokenizer_hash, facts["train_sha256"], asdict(cfg), model_cfg.as_dict())
    marker = work / "train.done"
    if not done(marker, inputs, [work / "checkpoint.pt"]):
        if not make_weights(work, model_cfg, cfg, device, compile_model):
            raise typer.Exit(130)
        marker.write_text(inputs)
    if until is Step.train:
        return
    scores = make_scores(work, digest(tokenizer_hash, facts))
    if until is Step.evaluate:
        return
    export_model(work, out)
    model, _, _, seconds = load_trained(work / "checkpoint.pt")
    tokens = len(np.load(work / "tokens.npy", mmap_mode="r"))
    text = card.render(facts, scores, model_cfg, cfg, model.num_parameters(), tokens, seconds)
    (out / "README.md").write_text(text, encoding="utf-8")
    console.print(f"export: {out}")


def main(
    work: Annotated[
        Path, typer.Option(help="Downloads, corpus, checkpoints and logs; several GB.")
    ] = DEFAULT_WORK,
    out: Annotated[Path, typer.Option(help="Where the finished model goes.")] = HERE
    / "octavo-tiny",
    until: Annotated[Step, typer.Option(help="Stop after this step.")] = Step.export,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; auto takes a GPU when there is one.")
    ] = "auto",
    steps: Annotated[
        int, typer.Option(min=1, help="Stop the recipe after this many steps of 8,192 tokens.")
    ] = RECIPE.steps,
    seed: Annotated[int, typer.Option(help="Weights and data order.")] = RECIPE.seed,
    compile_model: Annotated[
        bool, typer.Option("--compile/--no-compile", help="torch.compile; needs a C++ compiler.")
    ] = True,
    preliminary: Annotated[
        bool, typer.Option(help="Export the last checkpoint as it is, without its scores.")
    ] = False,
) -> None:
    """Make octavo-tiny: corpus, tokenizer, train, evaluate, export.

    Every step is skipped when its output is there, so running this again resumes it. Ctrl-C or
    SIGTERM during training saves first.

    Example, in the background and out of the way:

        OMP_WAIT_POLICY=PASSIVE nice -n 15 python models/train_tiny.py > train.log 2>&1 &
    """
    work.mkdir(parents=True, exist_ok=True)
    if preliminary:
        export_model(work, out)
        console.print(f"export: preliminary weights in {out}")
        return
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg = TrainConfig(seed=seed).first_steps(steps)
    build(work, out, until, cfg, device, compile_model)


if __name__ == "__main__":
    typer.run(main)
