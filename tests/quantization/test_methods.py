"""Methods of `octavo quantize` on octavo-tiny, calibrated on its training text, measured on what
was held out: gptq is better than rounding, awq not worse, by a bootstrap over documents."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.quantizers import document_nll, document_tokens, make_windows
from octavo.quality.statistics import Bounds, bound_loss
from octavo.quantization.job import Method, QuantizeOptions
from octavo.quantization.writer import quantize_checkpoint
from tests.quality.texts import TINY, held_out, write_text

CALIBRATION = TINY / "calibration.jsonl"
CONTEXT = 512
METHODS: tuple[Method, ...] = ("rtn", "awq", "gptq")
Nll = dict[str, NDArray[np.float64]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Nll, NDArray[np.float64]]:
    folder = tmp_path_factory.mktemp("methods")
    windows = make_windows(TINY, write_text(folder / "text.jsonl", 40, 512), CONTEXT)
    nll = {"baseline": document_nll(TINY, windows, CONTEXT)}
    for method in METHODS:
        options = QuantizeOptions(
            model=str(TINY), out=str(folder / method), bits=4, group_size=64, method=method,
            calibration=None if method == "rtn" else str(CALIBRATION), calibration_tokens=16_384,
            threads=1,
        )  # fmt: skip
        list(quantize_checkpoint(options))
        nll[method] = document_nll(folder / method, windows, CONTEXT)
    return nll, document_tokens(windows)


def against(first: str, second: str, measured: tuple[Nll, NDArray[np.float64]]) -> Bounds:
    nll, tokens = measured
    return bound_loss(nll[second] - nll[first], tokens)


def test_gptq_is_better_than_rounding(measured: tuple[Nll, NDArray[np.float64]]) -> None:
    # Of the whole text, 65,536 tokens read for it: −1.8 to −2.4 %.
    assert against("rtn", "gptq", measured).upper < -0.005
    assert 0 < against("baseline", "gptq", measured).estimate < 0.02


def test_awq_is_not_worse_than_rounding(measured: tuple[Nll, NDArray[np.float64]]) -> None:
    # As above: −0.6 to −0.1 %.
    assert against("rtn", "awq", measured).upper < 0.01


def test_the_calibration_text_is_not_the_one_that_is_measured() -> None:
    own = {part for text in _texts(CALIBRATION) for part in text.split("\n\n") if len(part) > 60}
    measured = {part for text in held_out() for part in text.split("\n\n")}
    assert len(own) > 500 and not own & measured


def _texts(path: Path) -> list[str]:
    from octavo.texts import read_texts

    return [text for _, text in read_texts(path)]
