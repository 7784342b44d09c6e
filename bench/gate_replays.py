#!/usr/bin/env python3
"""How often a bound lets pass what it should not: the gate's, and others that were weighed.

    python bench/gate_replays.py [--replays 2000] [--plot gate-replays.png]
    python bench/gate_replays.py --measure models/octavo-tiny models/octavo-tiny-int4

The true loss of a replay's documents lies exactly at the margin, so that each pass is an error, and
with honest bounds 5 % of the replays pass. "measured" draws with replacement from documents that
were read once with a model and its quantized form (--measure does that, into results/), their loss
moved to the margin. The others are made up: documents of unequal length (lognormal, sigma 0.8); a
document's loss a token deviates from the margin by draws of different skewness, and its tokens add
their own noise.
"""

import argparse
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from octavo.quality.statistics import bound_loss

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]

MARGIN = 0.01
COUNTS = (20, 50, 200)
MEASURED = "measured"
MEASURED_FILE = Path(__file__).with_name("results") / "gate-documents.json"
RESAMPLES = 1000  # of 10,000: a replay's quantile is noisier, which evens out over the replays
_SPREAD_NATS, _TOKEN_NATS = 0.02, 0.15

# Deviations of documents, each with mean 0.
POPULATIONS: dict[str, Draw] = {
    "normal": lambda random, n: random.normal(0, 1, n),
    "gamma, skewness 1.4": lambda random, n: random.gamma(2, 1, n) - 2,
    "exponential, skewness 2": lambda random, n: random.exponential(1, n) - 1,
    "lognormal, skewness 3.3": lambda random, n: random.lognormal(0, 0.75, n) - math.exp(0.28125),
    "lognormal, skewness 6.2": lambda random, n: random.lognormal(0, 1, n) - math.exp(0.5),
    "exponential, skewness −2": lambda random, n: 1 - random.exponential(1, n),
    # Which loses twenty times the margin; the others lose nothing.
    "all lost by 1 in 20": lambda random, n: (
        ((random.random(n) < 0.05) / 0.05 - 1) * math.log1p(MARGIN) / _SPREAD_NATS
    ),
}


def documents(population: str, count: int, seed: int) -> tuple[Floats, Floats]:
    """Summed differences and tokens of documents whose true loss is the margin."""
    random = np.random.default_rng([seed, count])
    if population == MEASURED:
        differences, tokens = _measured()
        moved = differences - (differences.sum() / tokens.sum() - math.log1p(MARGIN)) * tokens
        drawn = random.integers(0, len(tokens), count)
        return moved[drawn], tokens[drawn]
    draw = POPULATIONS[population]
    tokens = np.ceil(300 * random.lognormal(0, 0.8, count)) + 8
    loss = tokens * (math.log1p(MARGIN) + _SPREAD_NATS * draw(random, count))
    return loss + random.normal(0, _TOKEN_NATS, count) * np.sqrt(tokens), tokens


@cache
def _measured() -> tuple[Floats, Floats]:
    content = json.loads(MEASURED_FILE.read_text(encoding="utf-8"))
    return np.array(content["differences_nats"]), np.array(content["tokens"], np.float64)


def measure(baseline: Path, candidate: Path) -> None:
    """Reads the baseline's held-out documents with both, as the gate does, and notes what each
    document lost."""
    from octavo.models.model_config import read_model_config
    from octavo.quality.measure import Measured, Reader, by_document, score, side_config
    from octavo.quality.windows import cut_windows
    from octavo.texts import TextTokenizer, read_texts

    config = read_model_config(baseline)
    tokenizer = TextTokenizer(baseline, config.vocab_size)
    texts = tokenizer.documents(read_texts(baseline / "heldout.jsonl"))
    windows = cut_windows(texts, tokenizer.prefix, config.max_position)
    ours, theirs = (
        Reader(side_config(own, config.max_position, {})) for own in (baseline, candidate)
    )
    scores = list(score(ours, theirs, windows))
    differences, tokens = by_document(Measured(texts, windows, scores, tokenizer))
    content = {
        "baseline": baseline.name,
        "candidate": candidate.name,
        "text": "heldout.jsonl",
        "differences_nats": [round(float(each), 6) for each in differences],
        "tokens": [int(each) for each in tokens],
    }
    MEASURED_FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{len(tokens)} documents: {MEASURED_FILE}")


def gate_bound(differences: Floats, tokens: Floats, seed: int) -> float:
    """The gate's own."""
    return bound_loss(differences, tokens, resamples=RESAMPLES, seed=seed).upper


def other_bounds(differences: Floats, tokens: Floats, seed: int) -> dict[str, float]:
    """What was weighed beside it, in nats."""
    count = len(tokens)
    drawn = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    mean, error = _mean_and_error(differences[None], tokens[None])
    means, errors = _mean_and_error(differences[drawn], tokens[drawn])
    normal = NormalDist()
    without = (differences.sum() - differences) / (tokens.sum() - tokens)
    jackknife = without.mean() - without
    acceleration = (jackknife**3).sum() / (6 * (jackknife**2).sum() ** 1.5)
    share = min(max(float((means < mean).mean()), 1 / RESAMPLES), 1 - 1 / RESAMPLES)
    bias = normal.inv_cdf(share)
    z = bias + normal.inv_cdf(0.95)
    distances = (means - mean) / errors
    return {
        "percentile": float(np.quantile(means, 0.95)),
        "BCa": float(np.quantile(means, normal.cdf(bias + z / (1 - acceleration * z)))),
        "bootstrap-t": float(mean[0] - np.quantile(distances, 0.05) * error[0]),
    }


def _mean_and_error(differences: Floats, tokens: Floats) -> tuple[Floats, Floats]:
    total, count = tokens.sum(1), tokens.shape[1]
    means = differences.sum(1) / total
    residuals = differences - means[:, None] * tokens
    return means, np.sqrt((residuals**2).sum(1) * count / (count - 1)) / total


def pass_rates(population: str, count: int, replays: int) -> dict[str, float]:
    """Of each bound: the share of replays that pass."""
    passed: dict[str, int] = {}
    for seed in range(replays):
        sample = documents(population, count, seed)
        bounds = other_bounds(*sample, seed)
        bounds["the gate's"] = math.log1p(gate_bound(*sample, seed))
        for name, bound in bounds.items():
            passed[name] = passed.get(name, 0) + (bound <= math.log1p(MARGIN))
    return {name: number / replays for name, number in passed.items()}


def draw_plot(found: dict[tuple[str, int], dict[str, float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(COUNTS), figsize=(12, 4.2), sharey=True)
    names = list(next(iter(found.values())))
    populations = list(dict.fromkeys(population for population, _ in found))
    for axis, count in zip(axes, COUNTS, strict=True):
        for name in names:
            rates = [100 * found[population, count][name] for population in populations]
            axis.plot(rates, "o-", label=name)
        axis.axhline(6, color="#c0392b", linestyle="--", linewidth=1)
        axis.set_xticks(range(len(populations)), populations, rotation=35, ha="right", fontsize=8)
        axis.set_title(f"{count} documents", fontsize=10)
    axes[0].set_ylabel("pass at the margin's edge, %")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replays", type=int, default=2000)
    parser.add_argument("--plot", type=Path, help="a picture of the table")
    parser.add_argument(
        "--measure", type=Path, nargs=2, metavar=("BASELINE", "CANDIDATE"),
        help="read the held-out documents again instead",
    )  # fmt: skip
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return
    found: dict[tuple[str, int], dict[str, float]] = {}
    for population in (MEASURED, *POPULATIONS):
        for count in COUNTS:
            rates = pass_rates(population, count, args.replays)
            if not found:
                print("| documents' losses | documents |", " | ".join(rates), "|")
                print("|---" * (2 + len(rates)) + "|")
            found[population, count] = rates
            cells = " | ".join(f"{100 * rate:.1f} %" for rate in rates.values())
            print(f"| {population} | {count} | {cells} |", flush=True)
    if args.plot:
        draw_plot(found, args.plot)


if __name__ == "__main__":
    main()
