"""What the metrics say of the quality gate."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import triton_python_backend_utils as pb_utils

from octavo.quality.evidence import Record
from tests.quality.texts import copy_of_tiny, gate, write_text
from tests.serving.harness import Served

Serve = Callable[..., Served]
INT8 = {"weight_format": "int8"}


def gauges() -> dict[str, float]:
    """Those of one series each, without their prefix."""
    found = {}
    for family in pb_utils.MetricFamily.created:
        if family.name.startswith("octavo_quality_"):
            (metric,) = family.metrics.values()
            found[family.name.removeprefix("octavo_quality_")] = float(metric.value())
    return found


def labels() -> dict[str, str]:
    (family,) = [f for f in pb_utils.MetricFamily.created if f.name == "octavo_quality_gate"]
    ((labels, _),) = family.metrics.items()
    return {name: value for name, value in labels if name not in ("model", "version")}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    folder = copy_of_tiny(tmp_path_factory.mktemp("measured") / "m")
    text = write_text(folder.parent / "text.jsonl")
    return folder, gate(folder, text, folder, baseline=str(folder), **INT8)


@pytest.mark.parametrize(("margin", "state"), [(0.01, "pass"), (1e-5, "warn")])
def test_what_was_measured_is_shown(
    serve: Serve, measured: tuple[Path, Record], margin: float, state: str
) -> None:
    """Also where it is served although it is not good enough."""
    folder, record = measured
    serve(folder, kernels="auto", quality_gate="warn", quality_margin=margin, **INT8)
    assert labels() == {
        "gate": state, "weights": "int8", "activations": "bfloat16", "lm_head": "int8",
        "kv": "bfloat16",
    }  # fmt: skip
    numbers = record.numbers
    assert gauges() == {
        "gate": 1,
        "margin_ratio": margin,
        "perplexity_loss_ratio": numbers.loss.estimate,
        "perplexity_loss_lower_ratio": numbers.loss.lower,
        "perplexity_loss_upper_ratio": numbers.loss.upper,
        "mean_kl_nats": numbers.mean_kl_nats,
        "top1_agreement_ratio": numbers.top1_ratio,
        "context_tokens": record.text.longest,
        "measured_timestamp_seconds": datetime.fromisoformat(record.date).timestamp(),
    }


@pytest.mark.parametrize(
    ("settings", "state"),
    [
        ({}, "unquantized"),
        ({**INT8, "quality_gate": "off"}, "off"),
        ({"kv_cache_dtype": "int8", "quality_gate": "warn"}, "warn"),
    ],
)
def test_what_nobody_knows_is_absent(
    serve: Serve, measured: tuple[Path, Record], settings: dict[str, object], state: str
) -> None:
    serve(measured[0], kernels="auto", **settings)
    assert labels()["gate"] == state
    assert gauges() == {"gate": 1, "margin_ratio": 0.01}


def test_a_refusal_reaches_the_servers_log(measured: tuple[Path, Record], tmp_path: Path) -> None:
    with pytest.raises(pb_utils.TritonModelException, match="octavo: quality_gate = 'require': m "):
        Served(measured[0], tmp_path / "1", settings={"kv_cache_dtype": "int8"})
