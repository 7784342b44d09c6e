"""What is asked of `octavo playbook`, and what of it is settled by the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.config import DEFAULT_MARGIN, LARGEST_MARGIN, SLO
from octavo.errors import ConfigError
from octavo.playbook.workload import WORKLOADS

# Whole requests of the longest kind that the KV memory holds, unless a size is given.
RESERVED_CONTEXTS = 8
MOST_USERS = 32
_QUICK_USERS = (4, 16)
_QUICK_CONTEXT = 640  # half as long as the workloads are, for all who can be shorter
_QUICK_S = 10.0
_CALIBRATION_TOKENS, _QUICK_CALIBRATION_TOKENS = 65_536, 8_192
# Requests of a load: of each user so many, and no fewer than the second.
_PER_USER, _LEAST_REQUESTS = 3, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As asked for. out: a folder. text: what the gate reads. calibration: what GPTQ reads."""

    model: str
    out: str
    workload: str = "chat"
    usd_per_hour: float | None = None
    slo_ttft_s: float = SLO().ttft_s
    slo_tpot_s: float = SLO().tpot_s
    margin: float = DEFAULT_MARGIN
    text: str | None = None
    calibration: str | None = None
    context_tokens: int | None = None
    kv_memory_bytes: int | None = None
    most_users: int = MOST_USERS
    rounds: int = 3
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    num_threads: int | None = None
    quick: bool = False
    skip_transformers: bool = False

    def check(self) -> None:
        """Raises ConfigError naming option, value and limit."""
        if self.workload not in WORKLOADS:
            raise ConfigError(
                f"--workload = {self.workload}: should be one of {', '.join(WORKLOADS)}"
            )
        if self.usd_per_hour is not None:
            _above_zero("--price-per-hour", self.usd_per_hour)
        _above_zero("--slo-ttft-s", self.slo_ttft_s)
        _above_zero("--slo-tpot-s", self.slo_tpot_s)
        if not 0 < self.margin <= LARGEST_MARGIN:
            raise ConfigError(f"--margin = {self.margin:g}: above 0, at most {LARGEST_MARGIN}")
        for option, value, limit in (
            ("--rounds", self.rounds, 100),
            ("--users", self.most_users, 1024),
        ):
            if not 1 <= value <= limit:
                raise ConfigError(f"{option} = {value}: should be 1 to {limit}")

    @property
    def loads(self) -> tuple[int, ...]:
        """Users at once, fewest first."""
        if self.quick:
            most = min(_QUICK_USERS[-1], self.most_users)
            return (*(users for users in _QUICK_USERS if users < most), most)
        powers = [2**power for power in range(11) if 2**power < self.most_users]
        return (*powers, self.most_users)

    @property
    def num_rounds(self) -> int:
        return 1 if self.quick else self.rounds

    @property
    def longest_request(self) -> int | None:
        """That the workload may have, if this is less than it would have by itself."""
        return _QUICK_CONTEXT if self.quick else None

    @property
    def calibration_tokens(self) -> int:
        return _QUICK_CALIBRATION_TOKENS if self.quick else _CALIBRATION_TOKENS

    @property
    def max_stage_s(self) -> float:
        """No further load begins after it."""
        return _QUICK_S if self.quick else float("inf")


def num_requests(users: int) -> int:
    return max(_PER_USER * users, _LEAST_REQUESTS)


def _above_zero(option: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ConfigError(f"{option} = {value:g}: should be a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What all stages have in common. memory_bytes: weights as computed, and KV memory.

    page_tokens: of 16,384 bytes in a layer, K and V. digest: of the checkpoint's files, by names,
    sizes and dates.
    """

    model: str
    digest: str
    dtype: str
    device: str
    num_threads: int
    workload: str
    seed: int
    vocab_size: int
    most_users: int
    context_tokens: int
    kv_memory_bytes: int
    kv_token_bytes: int
    kv_layer_token_bytes: int
    num_layers: int
    weight_bytes: int
    page_tokens: int
    engine_page_tokens: int
    group_size: int | None
    accelerator: str = ""  # a GPU's name

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settled:
        return cls(**values)
