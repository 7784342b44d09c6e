"""What rounded weights cost on real text: octavo-tiny, in bfloat16, on a held-out window."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kv_quality import Reader, make_windows, read_texts
from octavo.models.decoder import Decoder
from octavo.quantization.weights import weight_format

OCTAVO_TINY = Path(__file__).parents[2] / "models" / "octavo-tiny"
LENGTH = 512


@dataclass(frozen=True, slots=True)
class Quality:
    perplexity: float
    kl_nats: float
    top1_ratio: float


@pytest.fixture(scope="module")
def measured() -> dict[str, Quality]:
    window = make_windows(OCTAVO_TINY, read_texts(OCTAVO_TINY / "heldout.jsonl"), LENGTH)[7]
    reader = Reader(OCTAVO_TINY, "bfloat16", LENGTH, 128)

    def read() -> Tensor:
        return torch.cat([*reader.log_probs(window, reader.cache("auto"))])[:-1]

    reference, following = read(), torch.tensor(window[1:])
    found = {}
    for name in ("auto", "int8", "int4", "w8a8", "w4a8"):
        own = weight_format(name, 64, "bfloat16")
        reader.model = Decoder(reader.config, OCTAVO_TINY, torch.bfloat16, LENGTH, own)
        log_probs = read()
        found[name] = Quality(
            float(F.nll_loss(log_probs, following).exp()),
            float(F.kl_div(log_probs, reference, reduction="batchmean", log_target=True)),
            float((log_probs.argmax(-1) == reference.argmax(-1)).float().mean()),
        )
    return found


# Perplexity at most so much worse, KL divergence in nats, equal top tokens.
LIMITS = {
    "auto": (1.0, 0.0, 1.0),
    "int8": (1.01, 2e-3, 0.95),
    "w8a8": (1.01, 4e-3, 0.94),
    "int4": (1.05, 0.06, 0.8),
    "w4a8": (1.05, 0.06, 0.8),
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
    divergences = [measured[name].kl_nats for name in ("auto", "int8", "w8a8", "int4")]
    assert divergences == sorted(divergences) and divergences[3] > 5 * divergences[2]
