"""The machine's peaks, and what sharing saves of identical prompts: measured beside the stages.

`python -m octavo.playbook.machine_worker` is given the settled inputs, and tells `peaks` and
`identical`; see `worker`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, cast

from octavo.benchmarks.load import run_load
from octavo.benchmarks.peak_probe import PeakProbe
from octavo.benchmarks.peaks import Kind
from octavo.config import make_config
from octavo.engine import Engine
from octavo.planner.roofline import Peaks
from octavo.playbook.facts import Identical, IdenticalSide
from octavo.playbook.options import Settled
from octavo.playbook.workload import WORKLOADS
from octavo.worker import serve

_PROMPTS = 8  # the article's
_PROMPT_TOKENS, _OUTPUT_TOKENS = 512, 16


def measure_peaks(settled: Settled, kernels: str) -> Peaks | None:
    """None on a GPU, whose peaks these probes do not measure."""
    if settled.device != "cpu":
        return None
    config = make_config(model=settled.model)
    kind = cast(Kind, settled.dtype)
    with PeakProbe(settled.num_threads, kernels, config.kernel_cache, kind) as probe:
        return probe.measure()


def measure_identical(settled: Settled) -> tuple[Identical, str]:
    """And the kernels that computed."""
    output = min(_OUTPUT_TOKENS, settled.context_tokens // 4)
    tokens = min(_PROMPT_TOKENS, settled.context_tokens - output)
    workload = WORKLOADS["distinct"].fitted(settled.context_tokens)
    prompt = list(workload.request(settled.seed, 0, -1, settled.vocab_size).prompt)
    prompt = (prompt * (tokens // len(prompt) + 1))[:tokens]
    sides = []
    for sharing in (False, True):
        engine = Engine(
            make_config(
                model=settled.model,
                dtype=settled.dtype,
                device=settled.device,
                num_threads=settled.num_threads,
                max_model_len=settled.context_tokens,
                max_num_seqs=_PROMPTS,
                kv_cache_bytes=_PROMPTS * settled.context_tokens * settled.kv_token_bytes,
                enable_prefix_caching=sharing,
                run_ahead=False,
            )
        )
        engine.runner.bind_to_thread()
        load = run_load(engine, [prompt] * _PROMPTS, output)
        sides.append(IdenticalSide(load.prefill_tokens, load.peak_reserved_bytes, load.duration_s))
        kernels = engine.runner.kernels
        engine.stop()
    return Identical(_PROMPTS, tokens, output, *sides), kernels


def _events(options: dict[str, Any]) -> Iterator[dict[str, object]]:
    settled = Settled.from_json(options)
    identical, kernels = measure_identical(settled)
    peaks = measure_peaks(settled, kernels)
    yield {
        "machine": {
            "kernels": kernels,
            "identical": asdict(identical),
            "peaks": None if peaks is None else asdict(peaks),
        }
    }


if __name__ == "__main__":
    serve(_events)
