"""From what was measured to what it says: a row for each stage, the fall of cost, the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo.config import SLO
from octavo.planner import savings
from octavo.planner.cost import usd_per_million_good_tokens
from octavo.playbook import stages
from octavo.playbook.facts import Machine, Quality
from octavo.playbook.options import Options, Settled
from octavo.playbook.samples import DecodeSteps, Figures, Sample, best_users, figures
from octavo.playbook.stages import STAGES, Judged, Stage


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a million good tokens. ratio: to stage 0b. usd: None without a price."""

    machine_s: float
    ratio: float | None
    usd: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One stage. skipped: why it was not measured. cost is None if no request met the SLO."""

    stage: Stage
    figures: Figures | None = None
    cost: Cost | None = None
    quality: Quality | None = None
    decode: DecodeSteps | None = None
    skipped: str = ""

    @property
    def judged(self) -> Judged | None:
        return None if self.quality is None else self.quality.judged

    @property
    def is_kept(self) -> bool:
        return not self.skipped and stages.is_kept(self.judged)

    @property
    def is_proven(self) -> bool:
        return self.is_kept and stages.is_proven(self.judged)


@dataclass(frozen=True, slots=True)
class Step:
    """Of the waterfall: what a stage leaves of 0b's cost."""

    row: Row
    fall: savings.Fall


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    options: Options
    settled: Settled
    machine: Machine
    samples: tuple[Sample, ...]
    rows: tuple[Row, ...]

    @property
    def slo(self) -> SLO:
        return slo_of(self.options)

    def row(self, stage: Stage) -> Row:
        return next(row for row in self.rows if row.stage.key == stage.key)

    @property
    def first(self) -> Row:
        return self.row(stages.CONTIGUOUS)

    @property
    def kept(self) -> list[Row]:
        """Ours that have a cost, in their order, without those that the gate refuses."""
        ours = (row for row in self.rows if row.stage.is_ours)
        return [row for row in ours if row.is_kept and row.cost is not None]

    @property
    def last_unquantized(self) -> Row | None:
        found = [row for row in self.kept if not row.stage.is_quantized]
        return found[-1] if found else None

    @property
    def proven(self) -> list[Row]:
        return [row for row in self.kept if row.is_proven]

    @property
    def last_proven(self) -> Row | None:
        return self.proven[-1] if self.proven else None

    @property
    def waterfall(self) -> list[Step]:
        """Without 0b's cost there is none."""
        if self.first.cost is None:
            return []
        rates = [row.figures.good_tokens_per_s for row in self.kept if row.figures is not None]
        falls = savings.waterfall(rates)
        return [Step(row, fall) for row, fall in zip(self.kept[1:], falls, strict=True)]


def slo_of(options: Options) -> SLO:
    return SLO(ttft_s=options.slo_ttft_s, tpot_s=options.slo_tpot_s)


def find(
    options: Options,
    settled: Settled,
    machine: Machine,
    samples: Sequence[Sample],
    qualities: Mapping[str, Quality],
    skipped: Mapping[str, str],
) -> Findings:
    slo = slo_of(options)
    verdicts = {key: quality.judged for key, quality in qualities.items()}
    own = {stage.key: [s for s in samples if s.stage == stage.key] for stage in STAGES}
    measured = {key: at_load(each, slo) for key, each in own.items() if each}
    first = measured.get(stages.CONTIGUOUS.key)
    baseline = figures(first, slo).good_tokens_per_s if first else 0.0
    rows = []
    for stage in STAGES:
        actual = stages.as_measured(stage, verdicts)
        quality = qualities.get(stage.key)
        if stage.key not in measured:
            rows.append(
                Row(actual, quality=quality, skipped=skipped.get(stage.key, "not measured"))
            )
            continue
        chosen = measured[stage.key]
        numbers = figures(chosen, slo)
        cost = _cost(numbers.good_tokens_per_s, baseline, options.usd_per_hour)
        rows.append(Row(actual, numbers, cost, quality, _decode(chosen)))
    return Findings(
        options=options,
        settled=settled,
        machine=machine,
        samples=tuple(samples),
        rows=tuple(rows),
    )


def at_load(samples: Sequence[Sample], slo: SLO) -> list[Sample]:
    """Of a stage: those of the load that its first round has found."""
    users = best_users([each for each in samples if each.round == 0], slo)
    return [each for each in samples if each.users == users]


def _cost(rate: float, baseline: float, usd_per_hour: float | None) -> Cost | None:
    if rate == 0:
        return None
    usd = None if usd_per_hour is None else usd_per_million_good_tokens(rate, 1.0, usd_per_hour)
    ratio = savings.cost_ratio(rate, baseline) if baseline else None
    return Cost(savings.machine_s_per_million(rate), ratio, usd)


def _decode(samples: Sequence[Sample]) -> DecodeSteps | None:
    found = [each.decode for each in samples if each.decode is not None]
    if not found:
        return None
    return DecodeSteps(
        sum(each.steps for each in found),
        sum(each.bytes for each in found),
        sum(each.flops for each in found),
        sum(each.elapsed_s for each in found),
    )
