"""A part of a text, for a quick look."""

from __future__ import annotations

import json
from pathlib import Path

from octavo.texts import read_texts

_DOCUMENTS, _CHARACTERS = 24, 1_500


def sample_text(text: Path, file: Path) -> Path:
    """Writes the beginnings of the first documents of `text` as .jsonl. Raises ConfigError."""
    documents = [own[:_CHARACTERS] for _, own in read_texts(text)[:_DOCUMENTS]]
    lines = (json.dumps({"text": own}, ensure_ascii=False) + "\n" for own in documents)
    file.write_text("".join(lines), encoding="utf-8")
    return file
