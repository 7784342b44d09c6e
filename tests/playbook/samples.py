"""Samples with numbers that are easily counted."""

from __future__ import annotations

from typing import Any

from octavo.playbook.samples import DecodeSteps, RequestTimes, Sample


def times(ttft_s: float = 0.5, tpot_s: float = 0.01, tokens: int = 11, **own: Any) -> RequestTimes:
    return RequestTimes(
        **{
            "ttft_s": ttft_s,
            "e2e_s": ttft_s + tpot_s * (tokens - 1),
            "output_tokens": tokens,
            "window_tokens": tokens,
            "ended_in_window": True,
            **own,
        }
    )


def sample(stage: str = "contiguous", good: int = 4, bad: int = 0, **own: Any) -> Sample:
    """`good` requests of 11 tokens in a window of 11 seconds, and some that came too late."""
    requests = [times()] * good + [times(ttft_s=9.0)] * bad
    values: dict[str, Any] = {
        "stage": stage, "round": 0, "users": 4, "window_s": 11.0, "requests": tuple(requests),
        "prompt_tokens": 200, "computed_tokens": 200, "preemptions": 0, "most_running": 4,
        "fit": 8, "weight_bytes": 1000, "kv_bytes": 500, "block_tokens": 16,
        "decode": DecodeSteps(10, 1e6, 4e6, 1e-3),
    }  # fmt: skip
    return Sample(**{**values, **own})
