"""What is asked of which worker, in which order, and what is kept. The workers only answer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import playbook_run
from octavo.cli.playbook_run import Measuring
from octavo.errors import OctavoError
from octavo.playbook.findings import Findings
from octavo.playbook.options import Options
from octavo.playbook.samples import Sample
from tests.playbook.findings import MACHINE, RATES, SETTLED
from tests.playbook.samples import sample

Event = dict[str, Any]


class Workers:
    """verdicts: the gate's, by the candidate's KV format and whether its weights are others.
    best: users that give the most. failing: a stage whose process ends with an error."""

    def __init__(self, best: int = 4) -> None:
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.verdicts = {"kv": "pass", "weights": "pass"}
        self.best = best
        self.failing = ""

    @contextmanager
    def __call__(self, module: str, options: Mapping[str, Any]) -> Iterator[Iterator[Event]]:
        name = module.rsplit(".", 1)[1] if "playbook" in module else module.split(".")[1]
        self.asked.append((name, options))
        yield iter(list(getattr(self, f"_{name}")(options)))

    def _machine_worker(self, options: Mapping[str, Any]) -> Iterator[Event]:
        yield {"machine": asdict(MACHINE)}

    def _quantization(self, options: Mapping[str, Any]) -> Iterator[Event]:
        Path(options["out"]).mkdir()
        (Path(options["out"]) / "config.json").write_text("{}")
        yield {"done": 1, "of": 1, "kept": 0}

    def _quality(self, options: Mapping[str, Any]) -> Iterator[Event]:
        side = "kv" if options["candidate"] == options["baseline"] else "weights"
        yield {"progress": {"done": 1, "of": 1, "step": "reading"}}
        yield {
            "record": {
                "outcome": self.verdicts[side], "reason": "so it is", "margin": 0.01,
                "report": "report.html", "text": {"name": "text.txt"},
                "numbers": {"loss": {"estimate": 0.0, "lower": 0.0, "upper": 0.0},
                            "top1_ratio": 1.0, "documents": 20},
            }
        }  # fmt: skip

    def _stage_worker(self, options: Mapping[str, Any]) -> Iterator[Event]:
        key = options["stage"]["key"]
        if key == self.failing:
            raise OctavoError("it has no such model")
        for users in options["loads"]:
            rate = RATES[key] + (users == self.best)
            yield {"sample": asdict(sample(key, rate, users=users, round=options["round"]))}

    def stages(self) -> list[tuple[str, int, tuple[int, ...]]]:
        return [
            (options["stage"]["key"], options["round"], tuple(options["loads"]))
            for name, options in self.asked
            if name == "stage_worker"
        ]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    own = Workers()
    monkeypatch.setattr(playbook_run, "worker", own)
    return own


@pytest.fixture
def options(tmp_path: Path) -> Options:
    (tmp_path / "text.txt").write_text("a text")
    return Options(
        model=SETTLED.model, out=str(tmp_path), text=str(tmp_path / "text.txt"), most_users=4,
        rounds=2,
    )  # fmt: skip


def measured(options: Options, said: list[str] | None = None) -> Findings:
    def tell(text: str, loads: int, detail: str) -> None:
        if said is not None:
            said.append(text)

    return Measuring(options, SETTLED, tell).run()


def test_stages_take_turns_and_later_rounds_repeat_the_best_load(
    workers: Workers, options: Options
) -> None:
    found = measured(options)
    first, second = workers.stages()[:7], workers.stages()[7:]
    assert [key for key, _, _ in first] == list(RATES)
    assert {(number, loads) for _, number, loads in first} == {(0, (1, 2, 4))}
    assert [key for key, _, _ in second] == list(RATES)
    assert {(number, loads) for _, number, loads in second} == {(1, (4,))}
    assert all(row.figures is not None and row.figures.rounds == 2 for row in found.rows)


def test_nothing_is_measured_twice(workers: Workers, options: Options) -> None:
    before = measured(options)
    workers.asked.clear()
    again = measured(replace(options, usd_per_hour=2.0))
    assert workers.asked == []
    assert again.samples == before.samples
    prefix = again.rows[4].cost
    assert prefix is not None and prefix.usd is not None


@pytest.mark.parametrize("change", [
    {"most_users": 2}, {"seed": 1}, {"kv_memory_bytes": 10**8}, {"digest": "1" * 64},
])  # fmt: skip
def test_other_inputs_are_measured_anew(
    workers: Workers, options: Options, change: dict[str, Any]
) -> None:
    measured(options)
    workers.asked.clear()
    Measuring(options, replace(SETTLED, **change), lambda *_: None).run()
    assert len(workers.stages()) == 14


def test_what_was_stopped_goes_on_behind_its_last_load(workers: Workers, options: Options) -> None:
    answer = workers._stage_worker

    def stopped(job: Mapping[str, Any]) -> Iterator[Event]:
        for event in answer(job):
            if (job["stage"]["key"], event["sample"]["users"]) == ("continuous", 4):
                raise KeyboardInterrupt
            yield event

    @contextmanager
    def lazily(module: str, job: Mapping[str, Any]) -> Iterator[Iterator[Event]]:
        with workers(module, job) if "stage_worker" not in module else _of(stopped(job)) as events:
            yield events

    @contextmanager
    def _of(events: Iterator[Event]) -> Iterator[Iterator[Event]]:
        yield events

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(playbook_run, "worker", lazily)
        measured(options)
    workers.asked.clear()
    found = measured(options)
    assert workers.stages()[0] == ("continuous", 0, (4,))
    assert [each["users"] for each in workers.asked[0][1]["earlier"]] == [1, 2]
    assert len(found.samples) == 7 * 4


def test_a_refused_format_is_left_out_behind(workers: Workers, options: Options) -> None:
    workers.verdicts["kv"] = "fail"
    measured(options)
    gates = [asked for name, asked in workers.asked if name == "quality"]
    assert [gate["kv_cache_dtype"] for gate in gates] == ["int8", "auto"]
    jobs = {job["stage"]["key"]: job for name, job in workers.asked if name == "stage_worker"}
    assert jobs["kv-int8"]["stage"]["kv"] == "int8", "it is measured and shown"
    assert jobs["weights-int4"]["stage"]["kv"] == "auto"
    assert jobs["weights-int4"]["folder"] != jobs["kv-int8"]["folder"] == SETTLED.model


def test_a_model_that_cannot_read_is_asked_once(workers: Workers, options: Options) -> None:
    workers.verdicts["kv"] = "no signal"
    found = measured(replace(options, calibration="other.txt"))
    assert [name for name, _ in workers.asked].count("quality") == 1
    (job,) = [asked for name, asked in workers.asked if name == "quantization"]
    assert job["method"] == "rtn" and job["calibration"] is None, "GPTQ has nothing to keep"
    assert [row.judged for row in found.rows[5:]] == ["no signal"] * 2


def test_a_calibration_text_is_gptqs(workers: Workers, options: Options, tmp_path: Path) -> None:
    """And another text makes other weights, which are judged and measured themselves."""
    folders = []
    for name in ("other.txt", "another.txt"):
        text = tmp_path / name
        text.write_text(name)
        workers.asked.clear()
        measured(replace(options, calibration=str(text)))
        (job,) = [asked for worker, asked in workers.asked if worker == "quantization"]
        assert (job["method"], job["calibration"], job["bits"]) == ("gptq", str(text), 4)
        folders.append(job["out"])
    assert folders[0] != folders[1]
    assert [worker for worker, _ in workers.asked].count("quality") == 1
    assert {stage for stage, *_ in workers.stages()} == {"weights-int4"}


def test_without_a_text_nothing_is_judged(workers: Workers, options: Options) -> None:
    found = measured(replace(options, text=None))
    assert "quality" not in {name for name, _ in workers.asked}
    assert [row.judged for row in found.rows[5:]] == ["not judged"] * 2
    assert found.rows[5].quality is not None and "--text" in found.rows[5].quality.reason


def test_without_transformers_0a_is_skipped_loudly(
    workers: Workers, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "transformers" else find_spec(name),
    )
    said: list[str] = []
    found = measured(options, said)
    assert "generate" not in {key for key, _, _ in workers.stages()}
    assert "transformers is not installed" in found.rows[0].skipped
    assert any("0a transformers IS SKIPPED: transformers is not installed" in each for each in said)


def test_0a_can_be_left_out(workers: Workers, options: Options) -> None:
    found = measured(replace(options, skip_transformers=True))
    assert [key for key, _, _ in workers.stages()][:2] == ["contiguous", "paged"]
    assert found.rows[0].skipped == "--skip-transformers"


def test_a_failing_transformers_costs_no_other_stage(workers: Workers, options: Options) -> None:
    workers.failing = "generate"
    found = measured(options)
    assert found.rows[0].skipped == "it failed: it has no such model"
    assert all(row.figures is not None for row in found.rows[1:])
    workers.failing = "paged"
    with pytest.raises(OctavoError, match="no such model"):
        measured(replace(options, slo_ttft_s=1.0, most_users=8))


def test_rows_that_are_no_groups_have_no_int4(workers: Workers, options: Options) -> None:
    found = Measuring(options, replace(SETTLED, group_size=None), lambda *_: None).run()
    assert "no whole groups" in found.rows[-1].skipped
    assert "quantization" not in {name for name, _ in workers.asked}


def test_samples_are_what_workers_said(workers: Workers, options: Options) -> None:
    found = measured(options)
    assert all(isinstance(each, Sample) for each in found.samples)
    assert {(each.stage, each.users) for each in found.samples if each.round == 1} == {
        (key, 4) for key in RATES
    }
