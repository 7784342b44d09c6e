"""The process of `octavo gate` that holds torch: GateOptions in, its events out."""

import logging
from collections.abc import Iterator
from typing import Any

from octavo.quality.gate import run
from octavo.quality.options import GateOptions
from octavo.worker import serve


def _gate(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    # That the candidate is ungated is why it is here.
    quiet = logging.getLogger("octavo.execution.model_runner")
    quiet.addFilter(lambda record: "ungated" not in str(record.msg))
    skipped = tuple(options.pop("kv_cache_skip_layers"))
    yield from run(GateOptions(**options, kv_cache_skip_layers=skipped))


if __name__ == "__main__":
    serve(_gate)
