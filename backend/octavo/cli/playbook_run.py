"""Measures what `octavo playbook` needs, worker by worker, and keeps each result as it comes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from octavo.benchmarks.machine import machine, versions
from octavo.cli.bench_process import worker
from octavo.errors import OctavoError
from octavo.playbook import stages
from octavo.playbook.facts import Machine, Quality
from octavo.playbook.findings import Findings, find, slo_of
from octavo.playbook.options import Options, Settled
from octavo.playbook.samples import Sample, best_users, is_past_best
from octavo.playbook.stages import GENERATE, KV_INT8, STAGES, WEIGHTS_INT4, Stage
from octavo.playbook.store import Store, key_of
from octavo.playbook.texts import sample_text
from octavo.quality.options import GateOptions
from octavo.quantization.job import Method, QuantizeOptions

# What goes on, how many loads have ended with it, and what only a bar has room for.
Tell = Callable[[str, int, str], None]

_Read = TypeVar("_Read")
_NOT_READABLE = (AttributeError, KeyError, TypeError, ValueError)
_NO_TEXT = "no text to judge by; name one with --text"


class Measuring:
    """Of one set of options; `tell` hears of each step. Raises OctavoError, OSError."""

    def __init__(self, options: Options, settled: Settled, tell: Tell) -> None:
        self._options, self._settled, self._tell = options, settled, tell
        self._out = Path(options.out)
        self._store = Store(self._out)
        about, own = machine(), {**asdict(settled), "model": ""}  # where it lies is of no matter
        self._common = {
            "settled": own, "versions": versions(), "cpu": [about["cpu_model"], about["cores"]],
        }  # fmt: skip
        self._samples: list[Sample] = []
        self._qualities: dict[str, Quality] = {}
        self._skipped: dict[str, str] = {}
        self._folder: str | None = None  # of the quantized weights

    @staticmethod
    def num_loads(options: Options) -> int:
        """At the most."""
        return len(STAGES) * (len(options.loads) + options.num_rounds - 1)

    def run(self) -> Findings:
        self._tell("the machine's peaks", 0, "")
        beside = self._kept(
            "machine",
            {},
            lambda: one_event("octavo.playbook.machine_worker", asdict(self._settled), "machine"),
            Machine.from_json,
        )
        text = self._text()
        self._judge(KV_INT8, text)
        self._quantize()
        if WEIGHTS_INT4.key not in self._skipped:
            self._judge(WEIGHTS_INT4, text)
        plan = list(self._stages())
        for number in range(self._options.num_rounds):
            for stage in plan:
                if stage.key not in self._skipped:
                    self._measure_or_skip(stage, number)
        return find(
            self._options, self._settled, beside, self._samples,
            self._qualities, self._skipped,
        )  # fmt: skip

    def _stages(self) -> Iterator[Stage]:
        """Those that can be measured here, as they are measured."""
        if self._options.skip_transformers:
            self._skip(GENERATE, "--skip-transformers")
        elif importlib.util.find_spec("transformers") is None:
            self._skip(GENERATE, "transformers is not installed (pip install transformers)")
        verdicts = {key: quality.judged for key, quality in self._qualities.items()}
        for stage in STAGES:
            if stage.key not in self._skipped:
                yield stages.as_measured(stage, verdicts)

    # Quality.

    def _quantize(self) -> None:
        """Once: the folder is kept. GPTQ only for a model that has something to lose."""
        settled, options = self._settled, self._options
        if settled.group_size is None:
            self._skip(WEIGHTS_INT4, "its rows are no whole groups of 32, 64 or 128 weights")
            return
        has_signal = self._qualities[KV_INT8.key].judged != "no signal"
        method: Method = "gptq" if options.calibration and has_signal else "rtn"
        text = ""
        if method == "gptq":
            own = sha256(Path(options.calibration or "").read_bytes()).hexdigest()
            text = f"-{options.calibration_tokens}-tokens-of-{own[:8]}"
        name = f"weights-int4-{method}{text}-g{settled.group_size}-{settled.digest[:8]}"
        folder = self._out / name
        self._folder = str(folder)
        if (folder / "config.json").is_file():
            return
        job = QuantizeOptions(
            model=settled.model, out=str(folder), bits=4, group_size=settled.group_size,
            method=method, calibration=options.calibration if method != "rtn" else None,
            calibration_tokens=options.calibration_tokens, threads=settled.num_threads,
        )  # fmt: skip
        with worker("octavo.quantization.worker", asdict(job)) as events:
            for event in events:
                self._tell(
                    f"int4 weights by {method}", 0, f"{event['done']} of {event['of']} shards"
                )

    def _text(self) -> Path | None:
        """What the gate reads."""
        if self._options.text is None:
            return None
        text = Path(self._options.text)
        return sample_text(text, self._out / "sample.jsonl") if self._options.quick else text

    def _judge(self, stage: Stage, text: Path | None) -> None:
        verdicts = {key: quality.judged for key, quality in self._qualities.items()}
        if text is None:
            self._qualities[stage.key] = _unjudged(self._options, _NO_TEXT)
        elif "no signal" in verdicts.values():  # it is said of the model as it is
            self._qualities[stage.key] = self._qualities[KV_INT8.key]
        else:
            self._qualities[stage.key] = self._gate(stages.as_measured(stage, verdicts), text)

    def _gate(self, stage: Stage, text: Path) -> Quality:
        options, settled = self._options, self._settled
        folder = self._out / "quality" / stage.key
        inputs = {
            **self._inputs(stage),
            "margin": options.margin,
            "text": sha256(text.read_bytes()).hexdigest(),
        }

        def measure() -> dict[str, Any]:
            folder.mkdir(parents=True, exist_ok=True)
            gate = GateOptions(
                baseline=settled.model, candidate=self._weights(stage), text=str(text),
                margin=options.margin, out=str(folder), dtype=settled.dtype,
                kv_cache_dtype=stage.kv, device=settled.device, num_threads=settled.num_threads,
            )  # fmt: skip
            result: dict[str, Any] = {}
            with worker("octavo.quality.gate_worker", asdict(gate)) as events:
                for event in events:
                    if "progress" not in event:
                        result = event
                        continue
                    now = event["progress"]
                    done = f"{now['done']:,} of {now['of']:,} tokens"
                    self._tell(f"gate, {stage.label}: {now['step']}", 0, done)
            return result

        try:
            return self._kept(
                "gate", inputs, measure,
                lambda found: Quality.of_record(found["record"], f"quality/{stage.key}"),
            )  # fmt: skip
        except OctavoError as error:
            self._tell(f"gate, {stage.label}: NOT JUDGED: {error}", 0, "")
            return _unjudged(options, str(error))

    # Speed.

    def _measure_or_skip(self, stage: Stage, number: int) -> None:
        """Of transformers, what cannot be measured is left out: the others do not rest on it."""
        try:
            self._measure(stage, number)
        except OctavoError as error:
            if stage.is_ours:
                raise
            self._samples = [each for each in self._samples if each.stage != stage.key]
            self._skip(stage, f"it failed: {error}")

    def _skip(self, stage: Stage, reason: str) -> None:
        self._skipped[stage.key] = reason
        self._tell(f"{stage.label} IS SKIPPED: {reason}", 0, "")

    def _measure(self, stage: Stage, number: int) -> None:
        """One round of a stage: what is stored, then what is missing."""
        loads = self._options.loads
        if number > 0:
            own = [each for each in self._samples if each.stage == stage.key and each.round == 0]
            loads = (best_users(own, slo_of(self._options)),)
        slo = slo_of(self._options)
        inputs = {**self._inputs(stage), "round": number}
        ended = self._key("ended", {**inputs, "loads": loads, "slo": asdict(slo)})
        keys = {users: self._key("sample", {**inputs, "users": users}) for users in loads}
        stored = [self._store.get(keys[users]) for users in self._store.get(ended) or loads]
        found = [each for each in takewhile(bool, map(_sample, stored)) if each]
        has_ended = [each.users for each in found] == self._store.get(ended)
        label = f"round {number + 1}, {stage.label}"
        self._tell(f"{label}: {len(found)} there already" if found else label, len(found), "")
        rest = loads[len(found) :]
        if not has_ended and rest and not is_past_best(found, slo):
            job = {
                "settled": asdict(self._settled), "stage": asdict(stage),
                "folder": self._weights(stage), "round": number, "loads": rest, "slo": asdict(slo),
                "max_s": self._options.max_stage_s, "earlier": [asdict(each) for each in found],
            }  # fmt: skip
            with worker("octavo.playbook.stage_worker", job) as events:
                for event in events:
                    found.append(Sample.from_json(event["sample"]))
                    users = found[-1].users
                    self._store.put(keys[users], event["sample"])
                    rate = f"{found[-1].tokens_per_s:,.0f} tokens/s"
                    self._tell(f"{label}: {users} users, {rate}", 1, "")
        if not has_ended:
            self._store.put(ended, [each.users for each in found])
        self._tell("", len(loads) - len(found), "")
        self._samples += found

    def _weights(self, stage: Stage) -> str:
        if stage.weights == "auto":
            return self._settled.model
        assert self._folder is not None
        return self._folder

    def _inputs(self, stage: Stage) -> dict[str, Any]:
        """What makes a stage another one."""
        inputs = {**asdict(stage), "folder": Path(self._weights(stage)).name}
        if not stage.is_ours:
            inputs["transformers"] = version("transformers")
        return inputs

    def _key(self, kind: str, inputs: Mapping[str, Any]) -> str:
        """With what all results depend on."""
        return key_of(kind, {**inputs, **self._common})

    def _kept(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        measure: Callable[[], dict[str, Any]],
        read: Callable[[Any], _Read],
    ) -> _Read:
        key = self._key(kind, inputs)
        try:
            return read(self._store.get(key))
        except _NOT_READABLE:  # it is not there, or of another version
            found = measure()
            self._store.put(key, found)
            return read(found)


def _sample(stored: Any) -> Sample | None:
    try:
        return Sample.from_json(stored)
    except _NOT_READABLE:
        return None


def one_event(module: str, options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The only one of a worker. Raises OctavoError."""
    with worker(module, options) as events:
        found = [event[name] for event in events]
    result: dict[str, Any] = found[0]
    return result


def _unjudged(options: Options, reason: str) -> Quality:
    return Quality(judged="not judged", reason=reason, margin=options.margin)
