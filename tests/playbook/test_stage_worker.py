"""Each stage on a toy model: what its switch does really happens, and nothing else differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from factories import write_checkpoint
from octavo.config import SLO
from octavo.playbook import stages
from octavo.playbook.options import Options, Settled, num_requests
from octavo.playbook.samples import Sample
from octavo.playbook.settle_worker import settle
from octavo.playbook.stage_worker import (
    EngineStage,
    Job,
    build_engine,
    kv_bytes,
    measure,
    tokens_read,
)
from octavo.playbook.stages import STAGES, Stage
from octavo.quantization.job import QuantizeOptions
from octavo.quantization.writer import quantize_checkpoint

USERS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    return write_checkpoint(tmp_path_factory.mktemp("toy") / "toy", **sizes)


@pytest.fixture(scope="module")
def settled(folder: Path) -> Settled:
    options = Options(
        model=str(folder), out="", context_tokens=120, most_users=USERS, num_threads=1, device="cpu"
    )
    found = settle(options)
    # Room for three whole contexts.
    return replace(found, kv_memory_bytes=3 * 120 * found.kv_token_bytes)


def job(settled: Settled, stage: Stage, folder: str | None = None) -> Job:
    return Job(
        settled=settled, stage=stage, folder=folder or settled.model, round=0, loads=(USERS,),
        slo=SLO(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def samples(settled: Settled) -> dict[str, Sample]:
    own = [stage for stage in STAGES if stage.is_ours and stage.weights == "auto"]
    return {stage.key: next(measure(job(settled, stage))) for stage in own}


def test_all_stages_answer_the_same_requests(samples: dict[str, Sample]) -> None:
    asked = {tuple(sorted(each.output_tokens for each in own.requests)) for own in samples.values()}
    assert len(asked) == 1
    assert {own.prompt_tokens for own in samples.values()} == {samples["paged"].prompt_tokens}
    assert all(len(own.requests) == num_requests(USERS) for own in samples.values())


def test_contiguous_memory_reserves_the_longest_request(samples: dict[str, Sample]) -> None:
    own = samples["contiguous"]
    assert own.block_tokens == 120 and own.fit == 3 and own.most_running == 3


def test_blocks_let_more_run_in_the_same_bytes(samples: dict[str, Sample]) -> None:
    contiguous, paged = samples["contiguous"], samples["paged"]
    assert paged.block_tokens == 16 and paged.most_running > contiguous.most_running
    assert paged.fit > contiguous.fit
    whole_blocks = paged.kv_bytes / contiguous.kv_bytes
    assert 0.95 < whole_blocks <= 1


def test_a_static_batch_is_over_before_the_next_is_admitted(
    settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is empty whenever a static stage submits, and not in a continuous one."""
    running_at_submit = {}
    for stage in (stages.PAGED, stages.CONTINUOUS):
        own = EngineStage(job(settled, stage))
        engine, submit, counts = own._engine, own._engine.submit, []

        def counted(request, submit=submit, engine=engine, counts=counts):  # type: ignore[no-untyped-def]
            counts.append(len(engine.scheduler.running))
            submit(request)

        monkeypatch.setattr(engine, "submit", counted)
        own.measure(USERS)
        running_at_submit[stage.key] = max(counts)
    assert running_at_submit["paged"] == 0 < running_at_submit["continuous"]


def test_beginnings_are_computed_once(samples: dict[str, Sample], settled: Settled) -> None:
    whole, shared = samples["continuous"], samples["prefix"]
    assert whole.computed_tokens >= whole.prompt_tokens
    beginning = job(settled, stages.SHARED).workload.shared_tokens // 16 * 16
    assert beginning > 0
    found = sum(each.cached_tokens for each in shared.requests)
    assert found >= beginning * len(shared.requests)
    assert shared.computed_tokens <= whole.prompt_tokens - found + 16 * shared.preemptions * 9
    assert shared.fit > whole.fit


def test_int8_memory_holds_more(samples: dict[str, Sample], settled: Settled) -> None:
    assert samples["kv-int8"].fit > samples["prefix"].fit
    assert all(own.kv_bytes <= settled.kv_memory_bytes for own in samples.values())


def test_what_weights_give_up_is_kv_memory(
    settled: Settled, folder: Path, tmp_path: Path, samples: dict[str, Sample]
) -> None:
    out = tmp_path / "int4"
    list(quantize_checkpoint(QuantizeOptions(model=str(folder), out=str(out), bits=4,
                                             group_size=settled.group_size)))  # fmt: skip
    own = job(settled, stages.WEIGHTS_INT4, str(out))
    engine = build_engine(own)
    assert engine.runner.weight_format.weight_bits == 4
    all_bytes = kv_bytes(settled, str(out)) + engine.runner.model.num_bytes
    assert kv_bytes(settled, str(out)) > settled.kv_memory_bytes
    before = settled.kv_memory_bytes + settled.weight_bytes
    assert all_bytes == pytest.approx(before, rel=0.05)
    assert next(measure(own)).fit > samples["kv-int8"].fit


def test_decode_steps_are_seen(samples: dict[str, Sample]) -> None:
    for own in samples.values():
        assert own.decode is not None and own.decode.steps > 5
        assert own.decode.bytes > own.decode.steps * 1000 and 0 < own.decode.elapsed_s < 60


def test_layers_with_windows_read_no_more_than_those() -> None:
    assert tokens_read(100, {None: 4}) == 100
    assert tokens_read(100, {8: 4}) == 7 and tokens_read(3, {8: 4}) == 3
    assert tokens_read(100, {8: 3, None: 1}) == (3 * 7 + 100) / 4


def test_loads_end_when_more_users_are_of_no_use(settled: Settled) -> None:
    own = replace(job(settled, stages.PAGED), loads=(1, 2, 3, 4), slo=SLO(ttft_s=1e-9, tpot_s=1e-9))
    found = list(measure(own))
    # None is good at all, so no load is below another: all are tried.
    assert [each.users for each in found] == [1, 2, 3, 4]
    late = replace(own, max_s=0.0)
    assert [each.users for each in measure(late)] == [1]
