"""Engine settings: one frozen dataclass, read from engine.toml and the environment.

`OCTAVO_MODEL` names the checkpoint folder; `OCTAVO_ENGINE_<FIELD>` overrides a field.
"""

import os
import re
import sys
from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from octavo.errors import ConfigError
from octavo.quantization.weights import GROUP_SIZES, WEIGHT_FORMATS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_MODEL = "OCTAVO_MODEL"
ENV_PREFIX = "OCTAVO_ENGINE_"

# Of the perplexity that may be lost, as a ratio: where nothing is said, and at most.
DEFAULT_MARGIN, LARGEST_MARGIN = 0.01, 0.02

_DEFAULT_GROUP_SIZE = 128
_MOST_RECORDED_STEPS = 1000
_STEP_RANGE = re.compile(r"(\d{1,12})\s*-\s*(\d{1,12})")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
               "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip


def _no_bool(value: object) -> object:
    # JSON's and TOML's true would otherwise count as the number 1.
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def _byte_size(value: object) -> object:
    if isinstance(value, str) and not value.isdigit():
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError('should be a number of bytes, such as 1073741824, "512MiB" or "2GiB"')
        return int(Decimal(match[1]) * _SIZE_UNITS[(match[2] or "").lower()])
    return value


def _split(value: object) -> object:
    # The environment has no lists.
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")] if value.strip() else []
    return value


def _none_if_auto(value: object) -> object:
    return None if value == "auto" else value


def _no_empty(value: object) -> object:
    if value == "":
        raise ValueError("should not be empty")
    return value


def _group_size(value: int) -> int:
    if value not in GROUP_SIZES:
        raise ValueError(f"should be one of {', '.join(map(str, GROUP_SIZES))}")
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError("should be 'auto', 'cpu', 'cuda' or a GPU's 'cuda:0'")
    return value


def _redis_url(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(("redis://", "rediss://")):
        raise ValueError("should begin with redis:// or rediss://")
    return value


def _step_range(value: object) -> object:
    """Of "A-B" both numbers."""
    if isinstance(value, StepRange):
        return value
    match = _STEP_RANGE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError('should be two numbers of steps, such as "100-150"')
    first, last = int(match[1]), int(match[2])
    if not 1 <= first <= last:
        raise ValueError("should begin at step 1 or later, and not end before it begins")
    if last - first >= _MOST_RECORDED_STEPS:
        raise ValueError(f"should be at most {_MOST_RECORDED_STEPS} steps: memory holds them")
    return StepRange(first, last)


def _cache(name: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "octavo" / name


class StepRange(NamedTuple):
    """Both are in it."""

    first: int
    last: int


Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Integer = Annotated[int, BeforeValidator(_no_bool)]
ByteSize = Annotated[Integer, BeforeValidator(_byte_size), Field(ge=1, lt=2**63)]
Size = Annotated[Integer, BeforeValidator(_byte_size), Field(ge=0, lt=2**63)]
RedisURL = Annotated[SecretStr, AfterValidator(_redis_url)]  # it can hold a password
Auto = BeforeValidator(_none_if_auto)
DType = Literal["auto", "bfloat16", "float16", "float32"]
Weights = Literal["auto", "int8", "int4", "w8a8", "w4a8"]
GroupSize = Annotated[Integer, AfterValidator(_group_size)]
LMHeadFormat = Literal["auto", "bfloat16"]
KVCacheDType = Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"]
QualityGate = Literal["require", "warn", "off"]


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class SLO:
    """What a good request meets; the default is MLPerf's llama3.1-8b Server scenario."""

    ttft_s: Annotated[Number, Field(gt=0)] = 2.0
    tpot_s: Annotated[Number, Field(gt=0)] = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TierConfig:
    """Where KV blocks go that leave the pool, fastest first; a tier is on if it has bytes."""

    host_bytes: Size = 0
    disk_path: Annotated[Path, BeforeValidator(_no_empty)] | None = None
    disk_bytes: Size = 0
    redis_url: RedisURL | None = None
    redis_bytes: Size = 0  # of all engines together that share a model's blocks there
    redis_timeout_s: Annotated[Number, Field(gt=0, le=60)] = 0.5
    redis_expiry_s: Annotated[Integer, Field(ge=1, le=31_536_000)] = 86_400  # after the last use
    # Blocks on their way into one tier; what is beyond is not stored.
    store_queue_bytes: Size = 2**28
    # Slow a tier down, to try out what a slower link would give.
    host_link_bytes_per_s: ByteSize | None = None
    disk_link_bytes_per_s: ByteSize | None = None
    redis_link_bytes_per_s: ByteSize | None = None

    def __post_init__(self) -> None:
        for place, size in (("disk_path", "disk_bytes"), ("redis_url", "redis_bytes")):
            if (getattr(self, place) is None) != (getattr(self, size) == 0):
                given, missing = (size, place) if getattr(self, size) else (place, size)
                raise ValueError(f"{given} is set and {missing} is not: set both or none")

    @property
    def outlive_engine(self) -> bool:
        """Whether other engines, or the next start, will find what this one stores."""
        return self.disk_path is not None or self.redis_url is not None


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class EngineConfig:
    """Settings of one engine. None (written "auto") means: derived at load, and logged."""

    model: Path
    dtype: DType = "auto"  # auto: the checkpoint's own
    # How the matrices are stored; auto: as they are computed. The others are rounded at load: int8
    # and w8a8 with a scale for each row, int4 and w4a8 with one for each `weight_group_size`
    # weights of a row; w8a8 and w4a8 quantize the inputs too, token by token, to 8 bits.
    weight_format: Weights = "auto"
    weight_group_size: GroupSize = _DEFAULT_GROUP_SIZE
    lm_head_format: LMHeadFormat = "auto"  # under a quantized weight_format; auto: 8 bits
    # What becomes of quantized weights, inputs or KV memory without evidence (`octavo gate`) that
    # no more than `quality_margin` of perplexity is lost: they are refused at load, served with a
    # warning, or not looked at.
    quality_gate: QualityGate = "require"
    quality_margin: Annotated[Number, Field(gt=0, le=LARGEST_MARGIN)] = DEFAULT_MARGIN
    max_model_len: Annotated[Integer, Field(ge=2)] | Annotated[None, Auto] = None
    # A step computes at most this many tokens: decodes first, then chunks of prompts. It
    # bounds the length of a step, and so how soon a cancelled request gives back its blocks.
    max_num_batched_tokens: Annotated[Integer, Field(ge=1, le=2**20)] = 256
    max_num_seqs: Annotated[Integer, Field(ge=1, le=4096)] = 32
    # Admitted beyond max_num_seqs, so that a free place is filled within one step; all
    # further requests stay in the Triton server's queue, under its policy.
    max_num_waiting: Annotated[Integer, Field(ge=0, le=4096)] = 4
    # Tokens of a block. Or, in `block_bytes`, the bytes of one layer's share of it, keys and
    # values: the largest power of two of tokens that they hold. Auto is 16 tokens.
    block_size: Annotated[Integer, Field(ge=1, le=2**20)] | Annotated[None, Auto] = None
    block_bytes: ByteSize | Annotated[None, Auto] = None
    # How keys and values are stored; auto: as they are computed. int8 and fp8 have a scale for
    # each token and KV head; the layers in `kv_cache_skip_layers` are stored as computed.
    kv_cache_dtype: KVCacheDType = "auto"
    kv_cache_skip_layers: Annotated[
        tuple[Annotated[Integer, Field(ge=0)], ...], BeforeValidator(_split)
    ] = ()
    kv_cache_bytes: ByteSize | Annotated[None, Auto] = None
    # Blocks keep their content after their last user, for sequences that begin alike.
    enable_prefix_caching: bool = True
    # What becomes of a sequence whose blocks others need: swapped to a tier, recomputed, or what
    # costs less by measured rates.
    preemption: Literal["auto", "swap", "recompute"] = "auto"
    watermark_ratio: Annotated[Number, Field(ge=0, lt=1)] = 0.01
    # What computes; auto: a GPU if there is one. One process serves one GPU.
    device: Annotated[str, AfterValidator(_device)] = "auto"
    # The share of a GPU's memory that weights, steps, graphs and KV memory take together; the last
    # gets what the others leave.
    gpu_memory_utilization: Annotated[Number, Field(gt=0, le=1)] = 0.9
    # A decode step as one CUDA graph for each padded number of sequences.
    cuda_graphs: bool = True
    num_threads: Annotated[Integer, Field(ge=1, le=256)] | Annotated[None, Auto] = None
    # The core of each thread; without, the system moves them as it likes.
    thread_cpus: Annotated[
        tuple[Annotated[Integer, Field(ge=0)], ...], BeforeValidator(_split)
    ] = ()
    # The CPU's: the fastest that the processor has, those of an instruction set, or plain torch.
    kernels: Literal["auto", "amx", "avx512", "avx2", "portable", "reference"] = "auto"
    # Where the compiled ones are kept: built once for each version of their sources.
    kernel_cache: Path = Field(default_factory=lambda: _cache("kernels"))
    # Plan a step while the one before it is computed, and take its tokens one step late: for
    # devices that compute while the host plans. Auto is where there is one.
    run_ahead: bool | Annotated[None, Auto] = None
    sender_threads: Annotated[Integer, Field(ge=1, le=16)] = 1
    # The largest share of its time in which a sender serves several streams; while it rests, the
    # tokens of a stream gather into one response. 1 sends each step's tokens at once, which is
    # smoother and costs throughput where senders, server and clients share the engine's cores.
    sender_duty_cycle: Annotated[Number, Field(gt=0, le=1)] = 0.15
    drain_timeout_s: Annotated[Number, Field(ge=0, le=86_400)] = 30.0
    # Steps "A-B" of the engine, from 1 on, are recorded once, into a file of `profile_folder` for
    # Perfetto.
    profile_steps: Annotated[StepRange, BeforeValidator(_step_range)] | None = None
    profile_folder: Path = Field(default_factory=lambda: _cache("profiles"))
    slo: SLO = SLO()
    # What the machine costs while the engine runs, idle or not; without it nothing is priced. The
    # day on which that price held is exported beside it, so that an old one can be seen.
    price_usd_per_hour: Annotated[Number, Field(gt=0)] | None = None
    price_as_of: date | None = None
    # A JSON object for each request that has ended, without its text; without a file there is
    # none. Of `request_log_bytes` it becomes FILE.1, in place of an older one.
    request_log: Annotated[Path, BeforeValidator(_no_empty)] | None = None
    request_log_bytes: ByteSize = 2**26
    kv_tiers: TierConfig = TierConfig()

    def __post_init__(self) -> None:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens = {self.max_num_batched_tokens} should be at least "
                f"max_num_seqs = {self.max_num_seqs}: every running sequence decodes each step"
            )
        if self.block_size is not None and self.block_bytes is not None:
            raise ValueError(
                f"block_size = {self.block_size} and block_bytes = {self.block_bytes} both size "
                "a block; set one of them"
            )
        if self.kv_cache_skip_layers and self.kv_cache_dtype not in ("int8", "fp8"):
            raise ValueError(
                f"kv_cache_skip_layers = {list(self.kv_cache_skip_layers)}: with kv_cache_dtype "
                f"= {self.kv_cache_dtype!r} nothing is quantized; set it to 'int8' or 'fp8'"
            )

        self._check_weight_settings()
        self._check_price()

    def _check_price(self) -> None:
        if self.price_as_of is None:
            return
        if self.price_usd_per_hour is None:
            raise ValueError(
                f"price_as_of = {self.price_as_of} is set and price_usd_per_hour is not: set both "
                "or the price alone"
            )
        if self.price_as_of > date.today() + timedelta(days=1):  # a day for time zones
            raise ValueError(f"price_as_of = {self.price_as_of} lies in the future")

    def _check_weight_settings(self) -> None:
        is_quantized = self.weight_format != "auto"
        has_groups = is_quantized and WEIGHT_FORMATS[self.weight_format].group_size is not None
        if self.weight_group_size != _DEFAULT_GROUP_SIZE and not has_groups:
            raise ValueError(
                f"weight_group_size = {self.weight_group_size}: weight_format = "
                f"{self.weight_format!r} has no groups; set it to 'int4' or 'w4a8'"
            )
        if self.lm_head_format != "auto" and not is_quantized:
            raise ValueError(
                f"lm_head_format = {self.lm_head_format!r}: with weight_format = 'auto' nothing is "
                "quantized; set it to 'int8', 'int4', 'w8a8' or 'w4a8'"
            )

    @property
    def max_num_admitted(self) -> int:
        return self.max_num_seqs + self.max_num_waiting


_ADAPTER = TypeAdapter(EngineConfig)
_FIELDS = tuple(EngineConfig.__dataclass_fields__)
# Tables of engine.toml, each with the fields of a dataclass.
_SECTIONS = {
    "slo": tuple(SLO.__dataclass_fields__),
    "kv_tiers": tuple(TierConfig.__dataclass_fields__),
}
_NAMES = {*_FIELDS, *_SECTIONS["slo"], *_SECTIONS["kv_tiers"]}
_ANY_REDIS_URL = re.compile(r"(rediss?://)[^'\"]*", re.IGNORECASE)


def make_config(**values: Any) -> EngineConfig:
    """EngineConfig from plain values. Raises ConfigError naming field, value and limit."""
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as exc:
        fault = exc.errors(include_url=False)[0]
        loc = [str(part) for part in fault["loc"]]
        # Past the field itself, pydantic's path names the branches of its type.
        field = ".".join(name for name in loc if name in _NAMES) or "".join(loc)
        message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if fault["type"] == "unexpected_keyword_argument":
            field, known = ".".join(loc), _FIELDS if len(loc) == 1 else _SECTIONS[loc[0]]
            message = f"unknown setting; known: {', '.join(known)}"
        got = f"{field} = {_shown(field, fault['input'])}: " if field else ""
        if (
            field in _SECTIONS and fault["type"] == "value_error"
        ):  # of a whole table, not of a value
            got = f"{field}: "
        raise ConfigError(f"engine settings: {got}{message}") from None


def _shown(field: str, value: object) -> str:
    """`value` without a password that may be in it."""
    if field == "kv_tiers.redis_url":
        return "…"
    return _ANY_REDIS_URL.sub(r"\1…", repr(value))


def load_config(toml: Path, environ: Mapping[str, str] = os.environ) -> EngineConfig:
    """Settings of `toml`, overridden by the environment.

    Relative paths in the file count from its folder. Raises ConfigError.
    """
    try:
        values: dict[str, Any] = tomllib.loads(toml.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{toml}: no such file") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{toml}: {exc}") from None
    for name in ("model", "kernel_cache", "request_log", "profile_folder"):
        if values.get(name):
            values[name] = toml.parent / str(values[name])
    tiers = values.get("kv_tiers")
    if isinstance(tiers, dict) and tiers.get("disk_path"):
        tiers["disk_path"] = toml.parent / str(tiers["disk_path"])
    for name, value in environ.items():
        if name.startswith(ENV_PREFIX):
            field = name.removeprefix(ENV_PREFIX).lower()
            section = next((s for s in _SECTIONS if field.startswith(f"{s}_")), None)
            if section and isinstance(values.setdefault(section, {}), dict):
                values[section][field.removeprefix(f"{section}_")] = value
            else:
                values[field] = value
    if environ.get(ENV_MODEL):
        values["model"] = environ[ENV_MODEL]
    if "model" not in values:
        raise ConfigError(f"{toml}: model is not set; set it there or in {ENV_MODEL}")
    return make_config(**values)
