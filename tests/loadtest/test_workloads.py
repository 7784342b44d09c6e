"""Workloads: deterministic, of the lengths that were asked for, within the context."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from loadtest.workloads import WORKLOADS, Workload, WorkloadName, WorkloadSettings


def make(name: WorkloadName, **settings: Any) -> Workload:
    return Workload(WorkloadSettings(name=name, **settings))


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_request_depends_on_seed_and_number_alone(name: WorkloadName) -> None:
    one, other = make(name, seed=5), make(name, seed=5)
    forwards = [one.request(i) for i in range(30)]
    backwards = [other.request(i) for i in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert forwards != [make(name, seed=6).request(i) for i in range(30)]


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("max_model_len", [64, 2048, 131072])
def test_requests_fit_into_the_context(name: WorkloadName, max_model_len: int) -> None:
    workload = make(name, max_model_len=max_model_len, vocab_size=4096)
    for request in map(workload.request, range(300)):
        assert 1 <= len(request.input_ids) + request.max_tokens <= max_model_len
        assert request.max_tokens >= 1
        assert all(0 <= token < 4096 for token in request.input_ids)


def test_lengths_have_the_nominal_mean_and_spread() -> None:
    requests = [make("chat", max_model_len=8192).request(i) for i in range(2000)]
    inputs = np.array([len(r.input_ids) for r in requests])
    outputs = np.array([r.max_tokens for r in requests])
    assert inputs.mean() == pytest.approx(512, rel=0.03)
    assert outputs.mean() == pytest.approx(256, rel=0.03)
    # Cutting at two standard deviations takes 4.6 % of the spread away.
    assert inputs.std() / inputs.mean() == pytest.approx(0.24, rel=0.1)


def test_long_shapes_shrink_in_proportion() -> None:
    full = WorkloadSettings(name="rag", max_model_len=131072).shape("rag")
    small = WorkloadSettings(name="rag", max_model_len=2048).shape("rag")
    assert (full.input_tokens, full.output_tokens) == (4096, 512)
    assert small.input_tokens / small.output_tokens == pytest.approx(8, rel=0.02)
    assert small.input_tokens + small.output_tokens <= 2048


def test_lengths_can_be_set_and_fixed() -> None:
    workload = make("chat", input_tokens=100, output_tokens=20, length_cv=0)
    requests = [workload.request(i) for i in range(20)]
    assert {(len(r.input_ids), r.max_tokens) for r in requests} == {(100, 20)}
    assert len({r.input_ids for r in requests}) == 20


def test_shared_prefix_has_k_prefixes_and_m_suffixes_of_each() -> None:
    workload = make("shared-prefix", num_prefixes=3, num_suffixes=2)
    prompts = [workload.request(i).input_ids for i in range(200)]
    shared = int(len(prompts[0]) * 0.75)
    assert len({ids[:shared] for ids in prompts}) == 3
    assert len(set(prompts)) == 6


def test_other_workloads_share_no_prefix() -> None:
    prompts = [make("chat").request(i).input_ids for i in range(200)]
    assert len({ids[:16] for ids in prompts}) == 200


def test_mixed_is_made_of_the_others() -> None:
    counts = Counter(make("mixed").request(i).workload for i in range(1000))
    assert set(counts) == {"chat", "rag", "shared-prefix"}
    assert counts["chat"] / 1000 == pytest.approx(0.6, abs=0.05)


def test_cancel_marks_a_share_and_makes_it_long() -> None:
    workload = make("cancel", cancel_ratio=0.3, cancel_after_s=0.2)
    requests = [workload.request(i) for i in range(1000)]
    marked = [r for r in requests if r.cancel_after_s is not None]
    assert len(marked) / 1000 == pytest.approx(0.3, abs=0.05)
    assert {r.cancel_after_s for r in marked} == {0.2}
    assert all(len(r.input_ids) + r.max_tokens == 2048 for r in marked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "poetry"}, "workload: got poetry, must be one of chat, rag"),
        ({"vocab_size": 200}, "vocab-size: got 200, must be above 301"),
        ({"length_cv": 0.5}, "length-cv: got 0.5, must be from 0 to 0.4"),
        ({"cancel_ratio": 1.5}, "cancel-ratio: got 1.5, must be from 0 to 1"),
        ({"input_tokens": 0}, "input-tokens: got 0, must be at least 1"),
        ({"input_tokens": 2000}, "up to 3384 together, must be at most max-model-len = 2048"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkloadSettings(**{"name": "chat", **settings})
