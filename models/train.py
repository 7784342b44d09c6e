"""Build octavo-tiny from nothing: `python models/train.py`; octavo-small: `--model octavo-small`.

Five steps, each skipped while its output is there and its inputs are unchanged: corpus, tokenizer,
train, evaluate, export. Stop it whenever you like; the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
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
from sizes import SIZES, Size
from tiny_model import TinyConfig
from tokenizers import Tokenizer
from training import Progress as StepReport
from training import TokenStream, TrainConfig, Trainer, load_trained

HERE = Path(__file__).resolve().parent
DEFAULT_WORK = HERE.parent / ".cache" / "train"
console = Console()


Model = Enum("Model", {name: name for name in SIZES}, type=str)


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
    work: Path, run: Path, model_cfg: TinyConfig, cfg: TrainConfig, device: str, compile_model: bool
) -> bool:
    """Train to the last step, or until a signal; False when it was stopped."""
    tokens, offsets = np.load(work / "tokens.npy"), np.load(work / "offsets.npy")
    stream = TokenStream(tokens, offsets, cfg)
    trainer = Trainer(model_cfg, cfg, stream, run, device, compile_model)
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


def make_scores(work: Path, run: Path, texts: str) -> dict[str, Any]:
    """Judge the trained model and the baselines on the held-out documents."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    baseline = make_baselines(work, tokenizer, texts)
    path, marker = run / "scores.json", run / "evaluate.done"
    inputs = digest(baseline, corpus.sha256_file(run / "checkpoint.pt"))
    if not done(marker, inputs, [path]):
        console.print("evaluate: the model on the held-out documents")
        model = load_trained(run / "checkpoint.pt")[0]
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
    work: Path, out: Path, name: str, until: Step, cfg: TrainConfig, device: str, compiled: bool
) -> None:
    """Run the steps in order, up to and with `until`. Texts and tokens are every model's."""
    size, run = SIZES[name], work / name
    run.mkdir(exist_ok=True)
    facts = make_corpus(work)
    if until is Step.corpus:
        return
    tokenizer_hash = make_tokens(work, size.network, facts)
    if until is Step.tokenizer:
        return
    inputs = digest(tokenizer_hash, facts["train_sha256"], asdict(cfg), size.network.as_dict())
    marker = run / "train.done"
    if not done(marker, inputs, [run / "checkpoint.pt"]):
        if not make_weights(work, run, size.network, cfg, device, compiled):
            raise typer.Exit(130)
        marker.write_text(inputs)
    if until is Step.train:
        return
    scores = make_scores(work, run, digest(tokenizer_hash, facts))
    if until is Step.evaluate:
        return
    export_model(work, run, out)
    write_card(work, run, out, name, size, facts, scores)
    console.print(f"export: {out}")


def write_card(
    work: Path,
    run: Path,
    out: Path,
    name: str,
    size: Size,
    facts: dict[str, Any],
    scores: dict[str, Any],
) -> None:
    model, cfg, _, seconds = load_trained(run / "checkpoint.pt")
    tokens = len(np.load(work / "tokens.npy", mmap_mode="r"))
    text = card.render(name, size, facts, scores, cfg, model.num_parameters(), tokens, seconds)
    (out / "README.md").write_text(text, encoding="utf-8")


def main(
    name: Annotated[Model, typer.Option("--model", help="Which of the two.")] = Model[
        "octavo-tiny"
    ],
    work: Annotated[
        Path, typer.Option(help="Downloads, corpus, checkpoints and logs; several GB.")
    ] = DEFAULT_WORK,
    out: Annotated[
        Path | None, typer.Option(help="Where the finished model goes; models/NAME if not given.")
    ] = None,
    until: Annotated[Step, typer.Option(help="Stop after this step.")] = Step.export,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; auto takes a GPU when there is one.")
    ] = "auto",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop the recipe after this many steps.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Weights and data order.")] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile/--no-compile", help="torch.compile; needs a C++ compiler."),
    ] = True,
    preliminary: Annotated[
        bool, typer.Option(help="Export the last checkpoint as it is, without its scores.")
    ] = False,
) -> None:
    """Make a model: corpus, tokenizer, train, evaluate, export.

    Every step is skipped when its output is there, so running this again resumes it. Ctrl-C or
    SIGTERM during training saves first.

    Example, in the background and out of the way:

        OMP_WAIT_POLICY=PASSIVE nice -n 15 python models/train.py > train.log 2>&1 &
    """
    work.mkdir(parents=True, exist_ok=True)
    folder = out or HERE / name.value
    folder.mkdir(parents=True, exist_ok=True)
    if preliminary:
        export_model(work, work / name.value, folder)
        console.print(f"export: preliminary weights in {folder}")
        return
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg = SIZES[name.value].recipe
    cfg = replace(cfg, seed=cfg.seed if seed is None else seed).first_steps(steps or cfg.steps)
    build(work, folder, name.value, until, cfg, device, compiled)


if __name__ == "__main__":
    typer.run(main)
