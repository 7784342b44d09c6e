"""`octavo gate` from beginning to end: events on the way, evidence and report at the end."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from octavo.config import LARGEST_MARGIN
from octavo.errors import ConfigError
from octavo.models.model_config import ModelConfig, read_model_config
from octavo.quality import evidence, report
from octavo.quality.evidence import Form, Hashes, Record, Side, TextFacts
from octavo.quality.measure import (
    Measured,
    Reader,
    WindowScores,
    by_document,
    score,
    side_config,
)
from octavo.quality.options import GateOptions
from octavo.quality.statistics import bound_loss
from octavo.quality.verdict import Numbers, judge
from octavo.quality.windows import cut_windows
from octavo.texts import Document, TextTokenizer, read_texts

_MOST_NATS = 700.0  # exp of it is still a number


def run(options: GateOptions) -> Iterator[dict[str, Any]]:
    """Events: `progress` with tokens `done` and `of`, a `note` for each thing that weakens what was
    measured, then the `record`, as JSON has it, with the folder of its files. Raises ConfigError.
    """
    if not 0 < options.margin <= LARGEST_MARGIN:
        raise ConfigError(f"--margin = {options.margin}: above 0, at most {LARGEST_MARGIN}")
    folders = Path(options.baseline), Path(options.candidate)
    text, out = Path(options.text), Path(options.out or options.candidate)
    if options.out:
        with suppress(OSError):  # said below
            out.mkdir(parents=True, exist_ok=True)
    if not out.is_dir() or not os.access(out, os.W_OK):
        raise ConfigError(f"{out}: no folder that can be written to; name another with --out")
    evidence.read(out / evidence.FILE_NAME)  # unreadable: say so now, not after the measurement
    models = [read_model_config(folder) for folder in folders]
    if models[0].stored_format is not None:
        raise ConfigError(
            f"{folders[0]}: the baseline's weights are quantized ({models[0].stored_format}); name "
            "the checkpoint that they were made from"
        )
    documents, tokenizer = _documents(folders, models, read_texts(text))
    context = _context(options, models, documents, tokenizer.prefix)
    windows = cut_windows(documents, tokenizer.prefix, context)
    if not windows:
        raise ConfigError(f"{text}: no document is longer than a token, so nothing can be scored")
    total = sum(window.num_scored for window in windows)
    yield _progress(0, total, "hashing")
    text_hash = evidence.file_hash(text)
    threads = options.num_threads or len(os.sched_getaffinity(0))
    hashes = [Hashes.of(folder, threads) for folder in folders]
    yield _progress(0, total, "loading")
    own = options.candidate_settings()
    configs = [
        side_config(folder, context, {**options.common_settings(), **settings})
        for folder, settings in zip(folders, ({}, own), strict=True)
    ]
    baseline, candidate = map(Reader, configs)

    began_s = time.perf_counter()
    scores: list[WindowScores] = []
    done = 0
    for window, scored in zip(windows, score(baseline, candidate, windows), strict=True):
        scores.append(scored)
        done += window.num_scored
        yield _progress(done, total, "reading")
    measured = Measured(documents, windows, scores, tokenizer)
    numbers = count(measured, models[0].vocab_size)
    verdict = judge(numbers, options.margin)
    sides = [
        Side(folder.resolve().name, own_hashes, Form.of(reader.runner))
        for folder, own_hashes, reader in zip(folders, hashes, (baseline, candidate), strict=True)
    ]
    record = Record(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        outcome=verdict.outcome,
        reason=verdict.reason,
        more_documents=verdict.more_documents,
        margin=options.margin,
        baseline=sides[0],
        candidate=sides[1],
        text=TextFacts(
            text.name, text_hash, context, max(len(window.token_ids) - 1 for window in windows)
        ),
        numbers=numbers,
        versions=evidence.versions(candidate.runner),
        report=f"quality-{sides[1].form.slug}.html",
        seconds=round(time.perf_counter() - began_s, 3),
    )
    (out / record.report).write_text(report.page(record, measured), encoding="utf-8")
    evidence.write(out / evidence.FILE_NAME, record)
    if (short := evidence.too_short(record, models[1].max_position)) is not None:
        yield {"note": f"{short}, unless it serves contexts no longer than {record.text.longest:,}"}
    if len(documents) > 1 and text.suffix == ".txt" and b"\f" not in text.read_bytes():
        yield {
            "note": f"{text.name} has no form feeds, so each of its {len(documents):,} paragraphs "
            "counts as a document; if they are of one text, the bounds are surer than they may be: "
            "put form feeds between the texts"
        }
    yield {"record": evidence.to_json(record), "folder": str(out)}


def _progress(done: int, of: int, step: str) -> dict[str, Any]:
    return {"progress": {"done": done, "of": of, "step": step}}


def count(measured: Measured, vocab_size: int) -> Numbers:
    """Over all documents that have a scored token."""
    differences, tokens = by_document(measured)
    scores = measured.scores
    total = float(tokens.sum())
    baseline = sum(float(own.baseline_nll.sum(dtype=np.float64)) for own in scores) / total
    candidate = sum(float(own.candidate_nll.sum(dtype=np.float64)) for own in scores) / total
    return Numbers(
        documents=len(tokens),
        tokens=int(total),
        vocab_size=vocab_size,
        baseline_perplexity=math.exp(min(baseline, _MOST_NATS)),
        candidate_perplexity=math.exp(min(candidate, _MOST_NATS)),
        loss=bound_loss(differences, tokens),
        mean_kl_nats=sum(float(own.kl.sum(dtype=np.float64)) for own in scores) / total,
        top1_ratio=sum(int((s.baseline_top == s.candidate_top).sum()) for s in scores) / total,
        tokens_not_finite=sum(own.num_not_finite for own in scores),
    )


def _documents(
    folders: Sequence[Path], models: Sequence[ModelConfig], texts: Sequence[tuple[str, str]]
) -> tuple[list[Document], TextTokenizer]:
    """A text that stands twice is one document: it says nothing new. Raises ConfigError if the
    sides do not read the same tokens."""
    vocabularies = [model.vocab_size for model in models]
    if vocabularies[0] != vocabularies[1]:
        raise ConfigError(
            f"config.json: vocab_size = {vocabularies[0]} of the baseline, {vocabularies[1]} of "
            "the candidate: their probabilities cannot be compared token by token"
        )
    tokenizers = [
        TextTokenizer(folder, model.vocab_size)
        for folder, model in zip(folders, models, strict=True)
    ]
    documents = tokenizers[0].documents(texts)
    if folders[0].resolve() != folders[1].resolve():
        others = tokenizers[1].documents(texts)
        for ours, theirs in zip(documents, others, strict=True):
            if ours != theirs or tokenizers[0].prefix != tokenizers[1].prefix:
                raise ConfigError(
                    f"{ours.name}: {tokenizers[0].path} and {tokenizers[1].path} cut this text "
                    "into different tokens; the sides cannot be compared token by token"
                )
    once = {document.token_ids: document for document in reversed(documents)}
    return list(reversed(once.values())), tokenizers[0]


def _context(
    options: GateOptions,
    models: Sequence[ModelConfig],
    documents: Sequence[Document],
    prefix: tuple[int, ...],
) -> int:
    """Raises ConfigError."""
    limit = min(model.max_position for model in models)
    least = len(prefix) + 2
    if options.context is not None:
        if not least <= options.context <= limit:
            raise ConfigError(
                f"--context = {options.context}: from {least} to the model's {limit} tokens"
            )
        return options.context
    longest = max(len(document.token_ids) for document in documents)
    return max(least, min(limit, longest + max(len(prefix), 1)))
