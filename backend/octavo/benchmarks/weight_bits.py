"""How many bits a weight has, by what a result's line says of its model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

RULE = (
    "Weight bits of a line: its weight_format, else what the parts of the model's name say "
    "(int8, w8a8, w4a16, 4bit, Q8_0, Q4_K_M, fp16, bf16, f32; awq and gptq are 4), the last one "
    "that says it, else its quantization, dtype or precision, else 16. Of wXaY it is X."
)
_BITS = (1, 2, 3, 4, 5, 6, 8, 16, 32)
_PART = re.compile(r"(?:int|uint|i|w|q|iq|tq|f|fp|bf|nf|float|bfloat|mxfp|nvfp)(\d+)(?:a\d+)?")
_COUNT = re.compile(r"(\d+)bits?")
_METHODS = {"awq": 4, "gptq": 4}
_Q_DETAILS = re.compile(r"[01kmslx]|xs|xxs|nl")  # what stands behind Q4_ in a GGUF's name
_SUFFIXES = (".gguf", ".bin", ".safetensors")
_DEFAULT_BITS = 16


def weight_bits(line: Mapping[str, Any]) -> int:
    """By RULE."""
    said = [line.get("weight_format"), _name(line)]
    said += [line.get(field) for field in ("quantization", "dtype", "precision")]
    for text in said:
        found = [bits for part in _parts(text) if (bits := _part_bits(part)) is not None]
        if found:
            return found[-1]
    return _DEFAULT_BITS


def base_model(line: Mapping[str, Any]) -> str:
    """The model's name without what it says of its weights: the same for all forms of a model."""
    name = _name(line)
    pieces = re.split(r"([-_.])", name)
    while len(pieces) > 1 and _is_format(pieces[-1].lower()):
        del pieces[-2:]
    return "".join(pieces)


def _name(line: Mapping[str, Any]) -> str:
    name = PurePath(str(line.get("model", ""))).name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _parts(text: object) -> list[str]:
    return re.split(r"[-_.]", text.lower()) if isinstance(text, str) else []


def _part_bits(part: str) -> int | None:
    match = _PART.fullmatch(part) or _COUNT.fullmatch(part)
    if match is not None and int(match[1]) in _BITS:
        return int(match[1])
    return _METHODS.get(part)


def _is_format(part: str) -> bool:
    return _part_bits(part) is not None or _Q_DETAILS.fullmatch(part) is not None
