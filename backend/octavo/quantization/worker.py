"""The process of `octavo quantize` that holds torch: QuantizeOptions in, its progress out."""

from collections.abc import Iterator
from typing import Any

from octavo.quantization.job import QuantizeOptions
from octavo.quantization.writer import quantize_checkpoint
from octavo.worker import serve


def _quantize(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from quantize_checkpoint(QuantizeOptions(**options))


if __name__ == "__main__":
    serve(_quantize)
