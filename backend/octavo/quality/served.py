"""The gate before serving: what is quantized needs evidence that it is good enough.

It looks at what an engine has loaded, so that the form is the one that computes, with everything
"auto" settled; and at the bytes on disk just after they were read, while memory still holds them.
"""

import json
import logging
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from octavo.config import DEFAULT_MARGIN, EngineConfig
from octavo.errors import ConfigError, QualityGateError
from octavo.execution.model_runner import ModelRunner
from octavo.quality import evidence
from octavo.quality.evidence import Finding, Form, Hashes, Record
from octavo.quality.verdict import percent

log = logging.getLogger(__name__)

GateState = Literal["pass", "warn", "off", "unquantized"]

_MANIFEST = "quantization.json"  # of octavo quantize: what a folder was made from


@dataclass(frozen=True, slots=True)
class ServedQuality:
    """What is known of what an engine serves.

    state: "pass" has evidence, "warn" has none that holds and is served all the same, "off" was not
        looked at
    record: what was measured of these very bytes in this form, whatever came of it
    """

    state: GateState
    form: Form
    margin: float
    record: Record | None = None

    @property
    def label(self) -> Literal["pass", "ungated"] | None:
        """In results of benchmarks; None where nothing is quantized."""
        if self.state == "unquantized":
            return None
        return "pass" if self.state == "pass" else "ungated"

    @property
    def line(self) -> str:
        """Of what passed, in a few words."""
        assert self.record is not None
        loss = self.record.numbers.loss
        return (
            f"{self.form.short_name} · perplexity {100 * loss.estimate:+.2f} % "
            f"(≤ {100 * loss.upper:+.2f} %) of margin {percent(self.margin)}"
        )


def admit(config: EngineConfig, runner: ModelRunner) -> ServedQuality:
    """Raises QualityGateError if what was loaded may not be served."""
    form, margin = Form.of(runner), config.quality_margin
    if not form.is_quantized:
        return ServedQuality("unquantized", form, margin)
    if config.quality_gate == "off":
        log.warning("quality_gate = 'off': served ungated, whatever it has lost: %s", form)
        return ServedQuality("off", form, margin)
    began_s = time.perf_counter()
    record, findings = _examine(runner, form, margin)
    elapsed_s = time.perf_counter() - began_s
    holds = not any(finding.kind == "stale" for finding in findings)
    served = ServedQuality("warn" if findings else "pass", form, margin, record if holds else None)
    if record is not None and not findings:
        text = record.text
        log.info(
            "quality gate passed: %s; measured %s on %s, in contexts of up to %d tokens; its files "
            "were checked in %.1f s",
            served.line, record.date, text.name, text.longest, elapsed_s,
        )  # fmt: skip
        if form.quantizes_contexts and text.longest < runner.max_model_len - 1:
            log.warning(
                "contexts of up to %d tokens are served; how good %s is beyond %d has not been "
                "measured", runner.max_model_len, form.short_name, text.longest,
            )  # fmt: skip
        return served
    said = _refusal(config, runner, form, record, findings)
    if config.quality_gate == "require":
        raise QualityGateError(said)
    log.warning("THE QUALITY GATE HAS NOT BEEN PASSED: %s", said)
    return served


def _examine(
    runner: ModelRunner, form: Form, margin: float
) -> tuple[Record | None, tuple[Finding, ...]]:
    """The record of a form, and what speaks against serving on it."""
    path = runner.folder / evidence.FILE_NAME
    try:
        records = evidence.read(path)
        record = evidence.find(records, form)
        if record is None:
            others = "; ".join(str(own.candidate.form) for own in records)
            why = f"{path} has only: {others}" if others else f"{path} is not there"
            return None, (Finding("missing", "evidence", why),)
        hashes = Hashes.of(runner.folder, runner.num_threads, runner.checkpoint_digest)
        found = evidence.check(
            record, hashes, margin=margin, context=runner.max_model_len,
            baseline=_baseline_at_hand(runner.folder, record), num_threads=runner.num_threads,
        )  # fmt: skip
    except ConfigError as exc:  # a file that cannot be read
        return None, (Finding("missing", "evidence", str(exc)),)
    return record, (*found, *_other_source(runner.folder, record))


def _baseline_at_hand(folder: Path, record: Record) -> Path | None:
    """The folder of the baseline's name beside the candidate's. There need be none, as it is not
    what is served; one that shares neither config.json nor tokenizer.json is another model's. Where
    the two are one folder it is the candidate, which is looked at anyway."""
    name, hashes = record.baseline.name, record.baseline.hashes
    beside = folder.parent / name
    if Path(name).name != name or name in ("", ".", "..") or beside.resolve() == folder:
        return None
    files = ((beside / "config.json", hashes.config), (beside / "tokenizer.json", hashes.tokenizer))
    same = any(path.is_file() and evidence.file_hash(path) == known for path, known in files)
    return beside if same else None


def _other_source(folder: Path, record: Record) -> Iterator[Finding]:
    """`octavo quantize` notes what it read, which is the baseline, wherever that lies now."""
    try:
        source = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["source"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    measured = record.baseline.hashes.weights
    if source != measured:
        yield Finding(
            "stale", "baseline weights",
            f"{_MANIFEST} says it was made from weights of SHA-256 {str(source)[:12]}…; "
            f"{measured[:12]}… was the baseline",
        )  # fmt: skip


_SAID = {
    "missing": "there is no evidence for it",
    "stale": "its evidence is stale",
    "verdict": "it did not pass when it was measured",
    "margin": "what it may have lost is more than the margin",
    "context": "its evidence is of short contexts",
}


def _refusal(
    config: EngineConfig,
    runner: ModelRunner,
    form: Form,
    record: Record | None,
    findings: tuple[Finding, ...],
) -> str:
    """One line that ends with a command, so that it can be copied."""
    kinds = dict.fromkeys(finding.kind for finding in findings)
    reasons = ", and ".join(_SAID[kind] for kind in kinds)
    details = "; ".join(
        finding.why if finding.kind in ("missing", "verdict", "margin", "context")
        else f"{finding.part}: {finding.why}"
        for finding in findings
    )  # fmt: skip
    return (
        f"quality_gate = {config.quality_gate!r}: {runner.folder.name} ({form}): {reasons} "
        f"({details}). quality_gate = 'warn' or 'off' serves it all the same. With a FILE of your "
        f"text{_baseline_note(runner, record)}, this measures it: "
        f"{gate_command(config, runner, record)}"
    )


def _baseline_note(runner: ModelRunner, record: Record | None) -> str:
    is_known = runner.model_config.stored_format is None or _known_baseline(runner, record)
    return "" if is_known else " and the BASELINE that it was made from, 16 or 32 bits"


def _known_baseline(runner: ModelRunner, record: Record | None) -> Path | None:
    return None if record is None else _baseline_at_hand(runner.folder, record)


def gate_command(config: EngineConfig, runner: ModelRunner, record: Record | None = None) -> str:
    """That writes the evidence for what `runner` has loaded, for a shell."""
    is_rounded = runner.model_config.stored_format is None
    baseline = runner.folder if is_rounded else _known_baseline(runner, record)
    words = ["octavo", "gate", str(baseline or "BASELINE"), str(runner.folder)]
    options = {
        "--weights": config.weight_format,
        "--group-size": runner.weight_format.group_size if is_rounded else None,
        "--lm-head": config.lm_head_format,
        "--kv": config.kv_cache_dtype,
        "--kv-skip-layers": ",".join(map(str, config.kv_cache_skip_layers)) or None,
        "--dtype": config.dtype,
        "--device": config.device,
        "--margin": None if config.quality_margin == DEFAULT_MARGIN else config.quality_margin,
        "--text": "FILE",
    }
    for name, value in options.items():
        if value not in (None, "auto"):
            words += [name, str(value)]
    return shlex.join(words)
