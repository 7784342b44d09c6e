"""The experiment with a toy: what must hold of its numbers whatever the machine does."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo.benchmarks import identical
from octavo.benchmarks.identical import CONFIGURATIONS, ROWS, Options, Sample, Settings
from octavo.benchmarks.identical_plot import draw
from octavo.benchmarks.identical_worker import build_engine, measure, settle
from octavo.benchmarks.records import LoadRecord, RequestRecord
from octavo.errors import ConfigError

UNPAGED, UNSHARED, COLD, WARM = ROWS


@pytest.fixture(scope="module")
def options(toy_folder: Path) -> Options:
    return Options(
        model=str(toy_folder), num_threads=1, num_requests=6, prompt_tokens=41, output_tokens=5,
        block_size=4, rounds=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def settings(options: Options) -> Settings:
    return settle(options)


@pytest.fixture(scope="module")
def samples(settings: Settings) -> list[Sample]:
    return list(measure(settings))


def of(samples: list[Sample], row: str, num_requests: int) -> list[LoadRecord]:
    return [s.load for s in samples if (s.row, s.num_requests) == (row, num_requests)]


def test_defaults_come_from_the_checkpoint(toy_folder: Path) -> None:
    settings = settle(Options(model=str(toy_folder)))
    assert (settings.context_tokens, settings.prompt_tokens) == (256, 64)
    assert settings.dtype == "float32"
    # 8 requests of 128 tokens and the watermark, in contexts of 256.
    assert settings.kv_cache_bytes == 5 * settings.context_bytes


@pytest.mark.parametrize("num_requests, prompt, output", [(2, 1, 2), (8, 200, 56), (40, 3, 7)])
def test_default_memory_runs_all_at_once_when_paged(
    toy_folder: Path, num_requests: int, prompt: int, output: int
) -> None:
    settings = settle(
        Options(
            model=str(toy_folder), num_threads=1, num_requests=num_requests, prompt_tokens=prompt,
            output_tokens=output, block_size=4, rounds=1,
        )
    )  # fmt: skip
    samples = list(measure(settings))
    assert [load.peak_running for load in of(samples, UNSHARED, num_requests)] == [num_requests]
    assert settings.kv_cache_bytes <= (num_requests + 1) * settings.context_bytes


@pytest.mark.parametrize(
    "change, message",
    [
        ({"context_tokens": 257}, "--context = 257: the model's max_position_embeddings is 256"),
        ({"prompt_tokens": 252}, r"252 \+ 5: the context is 256 tokens"),
        ({"context_tokens": 45}, r"41 \+ 5: the context is 45 tokens"),
        ({"kv_cache_bytes": 131_071}, "--kv-memory = 131071 bytes: at least 131072, which is one"),
    ],
)
def test_what_cannot_run_is_refused(options: Options, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settle(replace(options, **change))


def test_the_bounds_themselves_run(options: Options) -> None:
    least = settle(replace(options, prompt_tokens=251, kv_cache_bytes=131_072, rounds=1))
    samples = list(measure(replace(least, num_requests=2)))
    assert [load.peak_running for load in of(samples, UNPAGED, 2)] == [1]


def test_configurations_take_turns_in_each_round(samples: list[Sample]) -> None:
    expected = [(number, row, count) for number in range(2) for row in ROWS for count in (1, 6)]
    assert [(s.round, s.row, s.num_requests) for s in samples] == expected


def test_without_paging_fewer_run_at_once(settings: Settings, samples: list[Sample]) -> None:
    contexts = settings.kv_cache_bytes // settings.context_bytes
    assert 1 < contexts < 6
    for load in of(samples, UNPAGED, 6):
        assert load.peak_running == contexts
        assert load.peak_reserved_bytes == settings.kv_cache_bytes
        assert load.peak_filled_bytes < load.peak_reserved_bytes / 2
    for row in (UNSHARED, COLD, WARM):
        for load in of(samples, row, 6):
            assert load.peak_running == 6


def test_memory_is_cut_from_the_same_bytes(settings: Settings) -> None:
    for configuration in CONFIGURATIONS:
        cache = build_engine(settings, configuration).runner.kv_cache
        assert cache.num_bytes == settings.kv_cache_bytes
        assert cache.block_size == (4 if configuration.paging else 256)


def test_what_is_shared_is_not_computed(samples: list[Sample]) -> None:
    for load in of(samples, UNPAGED, 6) + of(samples, UNSHARED, 6):
        assert (load.prefill_tokens, load.hit_tokens) == (6 * 41, 0)
    for count in (1, 6):
        for load in of(samples, WARM, count):
            assert (load.prefill_tokens, load.hit_tokens) == (count * 1, count * 40)
    for load in of(samples, COLD, 1):
        assert (load.prefill_tokens, load.hit_tokens) == (41, 0)
    for load in of(samples, COLD, 6):
        # Between all of one prompt and all of six, as far as a scheduler shares what still runs.
        assert 41 + 5 <= load.prefill_tokens <= 6 * 41
        assert load.prefill_tokens + load.hit_tokens == 6 * 41
    for cold, warm in zip(of(samples, UNSHARED, 6), of(samples, WARM, 6), strict=True):
        assert warm.peak_reserved_bytes < cold.peak_reserved_bytes / 2


Loads = Callable[..., LoadRecord]


@pytest.fixture
def made_up() -> Loads:
    def make(*ttft_s: float) -> LoadRecord:
        requests = tuple(
            RequestRecord(
                ttft_s=ttft, e2e_s=2 * ttft, longest_gap_s=0.1, output_tokens=4, cached_tokens=1
            )
            for ttft in ttft_s
        )
        return LoadRecord(
            requests=requests, duration_s=2 * max(ttft_s), prefill_tokens=7, block_bytes=8,
            peak_running=1, peak_reserved_bytes=64, peak_filled_bytes=32, counters={},
        )  # fmt: skip

    return make


def test_medians_and_ratios(settings: Settings, made_up: Loads) -> None:
    samples = [Sample(n, COLD, 1, made_up(ttft)) for n, ttft in enumerate((1.0, 9.0, 2.0))]
    samples += [Sample(n, COLD, 6, made_up(a, 6.0, 8.0)) for n, a in enumerate((5.0, 7.0, 6.5))]
    found = identical.medians(samples)
    assert found[COLD][1]["ttft_p50_s"] == found[COLD][1]["ttft_max_s"] == 2.0
    assert found[COLD][6]["ttft_p50_s"] == 6.5 and found[COLD][6]["e2e_max_s"] == 16.0
    assert found[COLD][6]["output_tps"] == 12 / 16 and found[COLD][6]["hit_tokens"] == 3
    assert set(found) == {COLD}
    assert identical.ratios(settings, found)[COLD]["ttft_p50_s"] == 6.5 / 2
    assert identical.ratios(settings, identical.medians(samples[:3])) == {}


def test_document_holds_all(settings: Settings, samples: list[Sample]) -> None:
    whole = json.loads(json.dumps(identical.document(settings, samples)))
    assert whole["complete"] and len(whole["rounds"]) == 16
    assert whole["settings"]["prompt_tokens"] == 41
    assert whole["versions"]["torch"] and whole["machine"]["cores"] >= 1
    assert whole["machine"]["cpu_model"]
    assert len(whole["rounds"][1]["load"]["requests"]) == 6
    assert whole["medians"][WARM]["6"]["hit_tokens"] == 240
    assert not identical.document(settings, samples[:-1])["complete"]


@pytest.mark.parametrize("measured", [16, 9, 1])
def test_picture_of_what_was_measured(
    settings: Settings, samples: list[Sample], measured: int, tmp_path: Path
) -> None:
    file = tmp_path / "picture.svg"
    draw(settings, identical.medians(samples[:measured]), file)
    drawn = file.read_text(encoding="utf-8")
    assert drawn.count("not measured") == (0 if measured >= 8 else 2 * 4)


def test_a_picture_is_large_enough_to_read(
    settings: Settings, samples: list[Sample], tmp_path: Path
) -> None:
    file = tmp_path / "picture.png"
    draw(settings, identical.medians(samples), file)
    header = file.read_bytes()[:24]
    assert header.startswith(b"\x89PNG") and int.from_bytes(header[16:20]) >= 1500
