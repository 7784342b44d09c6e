"""quality.json: what was measured of a checkpoint, and whether it still holds.

A file has one record for each form in which the checkpoint was measured (as it is, rounded to int4
as it is loaded, with int8 KV memory …); a new measurement of a form takes the place of the old one.
A record speaks of the bytes that its hashes name, and of no others.
"""

import fcntl
import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from octavo.config import LARGEST_MARGIN
from octavo.errors import ConfigError
from octavo.execution.model_runner import ModelRunner
from octavo.models.weights import checkpoint_digest
from octavo.quality.verdict import Numbers, Outcome, judge, percent
from octavo.quantization.kv import LAYOUT_VERSION
from octavo.quantization.weights import ROUNDING_VERSION

FILE_NAME = "quality.json"
_SCHEMA = 1
_AT_ONCE = 2**20
_FLOATS = ("float32", "bfloat16", "float16")
_CHAT_FILES = (
    "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja",
)  # fmt: skip
LONG_CONTEXT_TOKENS = 1_024
"""What rounds the context itself (KV memory, activations) shows its damage in long ones: evidence
for it has read a window as long as this, or as long as what is served."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a side computed with, once everything "auto" was settled.

    weights: WeightFormat's name. lm_head: its format's. kv: KVFormat's name of the layers that are
    not in kv_skip_layers, which are stored as computed
    """

    dtype: str
    weights: str
    group_size: int | None
    activations: str
    lm_head: str
    kv: str
    kv_skip_layers: tuple[int, ...] = ()

    @classmethod
    def of(cls, runner: ModelRunner) -> "Form":
        own = runner.weight_format
        dtype = str(runner.dtype).removeprefix("torch.")
        formats = [each.name for each in runner.kv_cache.layout.formats]
        quantized = [each.name for each in runner.kv_cache.layout.formats if each.is_quantized]
        kv = quantized[0] if quantized else formats[0]
        skipped = tuple(layer for layer, name in enumerate(formats) if name != kv)
        head = runner.model.lm_head.format.name
        return cls(dtype, own.name, own.group_size, own.activation, head, kv, skipped)

    @property
    def is_quantized(self) -> bool:
        return any(each not in _FLOATS for each in (self.weights, self.lm_head, self.kv))

    @property
    def quantizes_contexts(self) -> bool:
        """Whether what is read is rounded too, which shows more the longer the context is."""
        return self.activations not in _FLOATS or self.kv not in _FLOATS

    @property
    def short_name(self) -> str:
        """What is quantized, in two or three words."""
        parts = [] if self.weights in _FLOATS else [self.weights]
        if self.kv not in _FLOATS:
            parts.append(f"KV {self.kv}")
        return ", ".join(parts) or self.weights

    def __str__(self) -> str:
        groups = f" in groups of {self.group_size}" if self.group_size else ""
        skipped = f" but for layers {', '.join(map(str, self.kv_skip_layers))}"
        kv = self.kv + (skipped if self.kv_skip_layers else "")
        return (
            f"weights {self.weights}{groups}, lm_head {self.lm_head}, activations "
            f"{self.activations}, KV memory {kv}, computed in {self.dtype}"
        )

    @property
    def slug(self) -> str:
        """Part of a file's name."""
        groups = f"-g{self.group_size}" if self.group_size else ""
        skipped = "".join(f"-{layer}" for layer in self.kv_skip_layers)
        own = f"{self.weights}{groups}-head-{self.lm_head}-kv-{self.kv}{skipped}-{self.dtype}"
        return own


@dataclass(frozen=True, slots=True)
class Hashes:
    """SHA-256, hexadecimal. weights: of models.weights.checkpoint_digest. chat: by file, of what
    decides how prompts are written and when answers end; serving reads it, no measurement does."""

    weights: str
    config: str
    tokenizer: str
    chat: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, num_threads: int, weights: bytes | None = None) -> "Hashes":
        """Reads every byte; not the weights' where their digest is known. Raises ConfigError."""
        return cls(
            (weights or checkpoint_digest(folder, num_threads)).hex(),
            file_hash(folder / "config.json"),
            file_hash(folder / "tokenizer.json"),
            {n: file_hash(folder / n) for n in _CHAT_FILES if (folder / n).is_file()},
        )


@dataclass(frozen=True, slots=True)
class Side:
    """name: of the folder, for people; it is the hashes that identify it."""

    name: str
    hashes: Hashes
    form: Form


@dataclass(frozen=True, slots=True)
class TextFacts:
    """context: tokens that a window could have. longest: those that the longest one had."""

    name: str
    sha256: str
    context: int
    longest: int


def _moment(value: str) -> str:
    datetime.fromisoformat(value)
    return value


@dataclass(frozen=True, slots=True)
class Record:
    """report: name of the page beside the file. seconds: that reading took"""

    date: Annotated[str, AfterValidator(_moment)]
    outcome: Outcome
    reason: str
    more_documents: int | None
    margin: Annotated[float, Field(gt=0, le=LARGEST_MARGIN)]
    baseline: Side
    candidate: Side
    text: TextFacts
    numbers: Numbers
    versions: dict[str, str]
    report: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a record does not speak for what is to be served."""

    kind: Literal["missing", "stale", "verdict", "margin", "context"]
    part: str
    why: str


_RECORDS = TypeAdapter(tuple[Record, ...])


def versions(runner: ModelRunner) -> dict[str, str]:
    """Of everything whose change may change the numbers."""
    return {
        "octavo": version("octavo"),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "kernels": runner.kernels,
        "device": str(runner.device),
        "weight_rounding": str(ROUNDING_VERSION),
        "kv_layout": str(LAYOUT_VERSION),
    }


def read(path: Path) -> tuple[Record, ...]:
    """All records of a file; none if there is no file. Raises ConfigError if it is no evidence."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: no readable evidence ({exc})") from None
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        raise ConfigError(f"{path}: no evidence of schema {_SCHEMA}; move it away")
    try:
        return _RECORDS.validate_python(content.get("records"))
    except ValidationError as exc:
        fault = exc.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise ConfigError(f"{path}: records.{where}: {fault['msg']}") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def write(path: Path, record: Record) -> None:
    """Puts the record in the place of the one of its form. Raises ConfigError, OSError."""
    with _locked(path.parent):
        others = [own for own in read(path) if own.candidate.form != record.candidate.form]
        content = {"schema": _SCHEMA, "records": [asdict(own) for own in (*others, record)]}
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)  # a reader never sees half of it


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two that measure forms of one folder write one after the other, and neither's is lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def find(records: Iterable[Record], form: Form) -> Record | None:
    return next((own for own in records if own.candidate.form == form), None)


def check(
    record: Record,
    candidate: Path | Hashes,
    *,
    margin: float | None = None,
    context: int | None = None,
    baseline: Path | None = None,
    text: Path | None = None,
    num_threads: int = 1,
) -> tuple[Finding, ...]:
    """What speaks against serving the candidate on this record, in contexts of so many tokens;
    nothing if it holds. Baseline and text are compared where they are at hand. Reads every byte of
    all of them; raises ConfigError if a file is missing."""
    return tuple(_findings(record, candidate, margin, context, baseline, text, num_threads))


def _findings(
    record: Record,
    candidate: Path | Hashes,
    margin: float | None,
    context: int | None,
    baseline: Path | None,
    text: Path | None,
    num_threads: int,
) -> Iterator[Finding]:
    for own, side, name in (
        (candidate, record.candidate, "candidate"), (baseline, record.baseline, "baseline"),
    ):  # fmt: skip
        if own is not None:
            now_hashes = own if isinstance(own, Hashes) else Hashes.of(own, num_threads)
            yield from _stale_parts(name, side.hashes, now_hashes)
    if text is not None and file_hash(text) != record.text.sha256:
        yield Finding("stale", "text", f"{text} is not the text that was measured on")
    for part, now in (("weight_rounding", ROUNDING_VERSION), ("kv_layout", LAYOUT_VERSION)):
        if record.versions.get(part) != str(now):
            why = f"version {now}; measured with {record.versions.get(part)}"
            yield Finding("stale", part, why)
    judged = judge(record.numbers, record.margin)
    if record.outcome is not Outcome.PASS:
        yield Finding("verdict", "verdict", f"{record.outcome.value}: {record.reason}")
    elif judged.outcome is not Outcome.PASS:
        why = f"it says pass, its numbers {judged.outcome.value}: {judged.reason}"
        yield Finding("verdict", "verdict", why)
    elif margin is not None and not record.numbers.loss.upper <= margin:
        yield Finding(
            "margin", "margin",
            f"perplexity loss is up to {record.numbers.loss.upper:+.3%}; the margin is "
            f"{percent(margin)}",
        )  # fmt: skip
    short = None if context is None else too_short(record, context)
    if short is not None:
        yield Finding("context", "context", short)


def too_short(record: Record, context: int) -> str | None:
    """Why a record says too little of contexts of so many tokens, if it does."""
    needed = min(context - 1, LONG_CONTEXT_TOKENS)
    if not record.candidate.form.quantizes_contexts or record.text.longest >= needed:
        return None
    return (
        f"no window of {record.text.name} was longer than {record.text.longest:,} tokens; "
        f"{record.candidate.form.short_name} is to be measured on one of {needed:,} or more"
    )


def _stale_parts(side: str, measured: Hashes, now: Hashes) -> Iterator[Finding]:
    parts: list[tuple[str, str | None, str | None]] = [
        ("weights", measured.weights, now.weights),
        ("config.json", measured.config, now.config),
        ("tokenizer.json", measured.tokenizer, now.tokenizer),
    ]
    if side == "candidate":  # which is what is served
        names = sorted({*measured.chat, *now.chat})
        parts += [(name, measured.chat.get(name), now.chat.get(name)) for name in names]
    for name, was, own in parts:
        if was != own:
            yield Finding("stale", f"{side} {name}", f"{_shown(own)}; {_shown(was)} was measured")


def _shown(digest: str | None) -> str:
    return "no file" if digest is None else f"SHA-256 {digest[:12]}…"


def file_hash(path: Path) -> str:
    """Raises ConfigError."""
    digest = sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(_AT_ONCE):
                digest.update(part)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from None
    return digest.hexdigest()


def to_json(record: Record) -> dict[str, Any]:
    return asdict(record)
