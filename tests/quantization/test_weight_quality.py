"""What rounded weights cost on real text: octavo-tiny, in bfloat16, on a held-out window."""

from pathlib import Path

import pytest

from bench.quality import Quality, Reader, make_windows, measure, read_texts

OCTAVO_TINY = Path(__file__).parents[2] / "models" / "octavo-tiny"
LENGTH = 512
FORMATS = ("auto", "int8", "int4/64", "w8a8", "w4a8/64")


@pytest.fixture(scope="module")
def measured() -> dict[str, Quality]:
    window = make_windows(OCTAVO_TINY, read_texts(OCTAVO_TINY / "heldout.jsonl"), LENGTH)[7]
    readers = {name: Reader(OCTAVO_TINY, "bfloat16", LENGTH, 128, name) for name in FORMATS}
    readings = [(name, reader, reader.cache()) for name, reader in readers.items()]
    return {own.format: own for own in measure(readings, [window])}


# Perplexity at most so much worse, KL divergence in nats, equal top tokens.
LIMITS = {
    "auto": (1.0, 0.0, 1.0),
    "int8": (1.01, 2e-3, 0.95),
    "w8a8": (1.01, 4e-3, 0.94),
    "int4/64": (1.05, 0.06, 0.8),
    "w4a8/64": (1.05, 0.06, 0.8),
}


@pytest.mark.parametrize("name", LIMITS)
def test_quality(measured: dict[str, Quality], name: str) -> None:
    ratio, kl_nats, top1_ratio = LIMITS[name]
    own = measured[name]
    assert own.perplexity <= ratio * measured["auto"].perplexity
    assert own.kl_nats <= kl_nats
    assert own.top1_ratio >= top1_ratio


def test_fewer_bits_cost_more(measured: dict[str, Quality]) -> None:
    """So each format was in use, and what is measured is its rounding."""
    divergences = [measured[name].kl_nats for name in ("auto", "int8", "w8a8", "int4/64")]
    assert divergences == sorted(divergences) and divergences[3] > 5 * divergences[2]
