"""The process of `octavo gate` that holds torch: GateOptions in, its events out."""

from collections.abc import Iterator
from typing import Any

from octavo.quality.gate import run
from octavo.quality.options import GateOptions
from octavo.worker import serve


def _gate(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    skipped = tuple(options.pop("kv_cache_skip_layers"))
    yield from run(GateOptions(**options, kv_cache_skip_layers=skipped))


if __name__ == "__main__":
    serve(_gate)
