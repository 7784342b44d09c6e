"""What is measured beside the stages, as it goes through JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.planner.roofline import Peaks
from octavo.playbook.stages import Judged


@dataclass(frozen=True, slots=True)
class IdenticalSide:
    computed_tokens: int
    peak_kv_bytes: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Identical:
    """The same prompt so many times at once, without and with a prefix cache."""

    prompts: int
    prompt_tokens: int
    output_tokens: int
    alone: IdenticalSide
    shared: IdenticalSide


@dataclass(frozen=True, slots=True)
class Machine:
    kernels: str
    identical: Identical
    peaks: Peaks | None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Machine:
        own = values["identical"]
        sides = {side: IdenticalSide(**own[side]) for side in ("alone", "shared")}
        peaks = values["peaks"]
        return cls(
            values["kernels"],
            Identical(**{**own, **sides}),
            None if peaks is None else Peaks(**peaks),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What the gate says of a quantized stage beside the model as it is. Losses are of perplexity,
    as shares; None where nothing was measured."""

    judged: Judged
    reason: str
    margin: float
    loss: float | None = None
    loss_lower: float | None = None
    loss_upper: float | None = None
    top1_ratio: float | None = None
    documents: int | None = None
    text: str = ""
    evidence: str = ""

    @classmethod
    def of_record(cls, record: Mapping[str, Any], folder: str) -> Quality:
        """Of the gate's record, as JSON has it."""
        numbers = record["numbers"]
        return cls(
            judged=record["outcome"],
            reason=record["reason"],
            margin=record["margin"],
            loss=numbers["loss"]["estimate"],
            loss_lower=numbers["loss"]["lower"],
            loss_upper=numbers["loss"]["upper"],
            top1_ratio=numbers["top1_ratio"],
            documents=numbers["documents"],
            text=record["text"]["name"],
            evidence=f"{folder}/{record['report']}",
        )
