"""What `octavo quantize` is asked for. Standard library only: the command line starts with it."""

from dataclasses import dataclass
from typing import Literal

Method = Literal["rtn", "gptq", "awq"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """model, calibration, out: paths. calibration: text, of methods that read any.
    calibration_tokens: of that, at most, in windows of `window`"""

    model: str
    out: str
    bits: Literal[4, 8]
    group_size: int | None
    method: Method = "rtn"
    calibration: str | None = None
    calibration_tokens: int = 32_768
    window: int = 512
    threads: int | None = None
