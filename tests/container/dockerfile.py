"""The Dockerfile as data: enough of its grammar for ours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stage:
    name: str
    base: str
    instructions: tuple[tuple[str, str], ...]

    def arguments(self, instruction: str) -> list[str]:
        return [text for name, text in self.instructions if name == instruction]


def _instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def defaults() -> dict[str, str]:
    """Of the arguments before the first stage."""
    found = {}
    for name, text in _instructions():
        if name == "FROM":
            break
        found.update([text.split("=", 1)])
    return found


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    name, base, body = "", "", list[tuple[str, str]]()
    for instruction, text in [*_instructions(), ("FROM", "end AS end")]:
        if instruction == "FROM":
            found[name] = Stage(name, base, tuple(body))
            base, name = text.split(" AS ")
            body = []
        else:
            body.append((instruction, text))
    del found[""]
    return found


def lineage(name: str) -> list[Stage]:
    """The stage and those below it, the last first."""
    chain, known = [], stages()
    while name in known:
        chain.append(known[name])
        name = known[name].base
    return chain
