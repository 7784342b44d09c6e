"""What is known of the quality of the served form, as metrics."""

from collections.abc import Iterator
from datetime import datetime

from octavo.quality.served import ServedQuality
from octavo.quality.statistics import UNBOUNDED
from octavo.serving.metric_table import Sample


def collect_quality(served: ServedQuality) -> Iterator[Sample]:
    """None of it changes while an engine lives; numbers that nobody has measured are left out."""
    form = served.form
    labels = {
        "gate": served.state, "weights": form.weights, "activations": form.activations,
        "lm_head": form.lm_head, "kv": form.kv,
    }  # fmt: skip
    yield "octavo_quality_gate", "gauge", labels, 1
    yield "octavo_quality_margin_ratio", "gauge", {}, served.margin
    if served.record is None:
        return
    record, numbers = served.record, served.record.numbers
    for name, value in (
        ("octavo_quality_perplexity_loss_ratio", numbers.loss.estimate),
        ("octavo_quality_mean_kl_nats", numbers.mean_kl_nats),
        ("octavo_quality_top1_agreement_ratio", numbers.top1_ratio),
        ("octavo_quality_context_tokens", record.text.longest),
        (
            "octavo_quality_measured_timestamp_seconds",
            datetime.fromisoformat(record.date).timestamp(),
        ),
    ):
        yield name, "gauge", {}, value
    if numbers.loss.upper < UNBOUNDED:
        yield "octavo_quality_perplexity_loss_lower_ratio", "gauge", {}, numbers.loss.lower
        yield "octavo_quality_perplexity_loss_upper_ratio", "gauge", {}, numbers.loss.upper
