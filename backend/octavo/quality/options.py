"""What is asked of the gate. Without torch: the command line fills it in."""

from dataclasses import dataclass

from octavo.config import DEFAULT_MARGIN


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOptions:
    """Settings are EngineConfig's, by its names: of the candidate, and of both sides.

    context: tokens that are read at once; None is the model's whole context, as far as the longest
        document needs it
    out: folder of evidence and report; None is the candidate's
    """

    baseline: str
    candidate: str
    text: str
    margin: float = DEFAULT_MARGIN
    context: int | None = None
    out: str | None = None
    dtype: str = "auto"
    weight_format: str = "auto"
    weight_group_size: int | None = None
    lm_head_format: str = "auto"
    kv_cache_dtype: str = "auto"
    kv_cache_skip_layers: tuple[int, ...] = ()
    device: str = "auto"
    kernels: str = "auto"
    num_threads: int | None = None

    def candidate_settings(self) -> dict[str, object]:
        own: dict[str, object] = {
            "weight_format": self.weight_format,
            "lm_head_format": self.lm_head_format,
            "kv_cache_dtype": self.kv_cache_dtype,
            "kv_cache_skip_layers": list(self.kv_cache_skip_layers),
        }
        if self.weight_group_size is not None:
            own["weight_group_size"] = self.weight_group_size
        return own

    def common_settings(self) -> dict[str, object]:
        return {
            "dtype": self.dtype,
            "device": self.device,
            "kernels": self.kernels,
            "num_threads": self.num_threads,
        }
