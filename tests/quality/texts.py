"""Small texts and damaged checkpoints, made of what models/octavo-tiny has."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.quality.evidence import Record, read
from octavo.quality.gate import run
from octavo.quality.options import GateOptions
from octavo.texts import TextTokenizer

TINY = Path(__file__).parents[2] / "models" / "octavo-tiny"
HELD_OUT = TINY / "heldout.jsonl"
_FILES = ("config.json", "tokenizer.json", "model.safetensors")


def held_out() -> list[str]:
    lines = HELD_OUT.read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["text"] for line in lines if line]


def write_text(file: Path, documents: int = 24, tokens: int = 160, longest: int = 0) -> Path:
    """The first `tokens` tokens of so many of the held-out documents, of one of them `longest`."""
    tokenizer = TextTokenizer(TINY, 4096)._tokenizer
    encoded = [tokenizer.encode(text).ids for text in held_out()]
    most = max(range(documents), key=lambda index: len(encoded[index]))
    assert len(encoded[most]) > longest
    cuts = [max(tokens, longest if index == most else 0) + 1 for index in range(documents)]
    texts = [tokenizer.decode(ids[:cut]) for ids, cut in zip(encoded, cuts, strict=False)]
    lines = [json.dumps({"text": text}) for text in texts]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def copy_of_tiny(
    folder: Path, change: Callable[[str, Tensor], Tensor] | None = None, **config: Any
) -> Path:
    """octavo-tiny in `folder`, with its tensors changed and other values in its config.json."""
    folder.mkdir()
    for name in _FILES:
        shutil.copy(TINY / name, folder)
    if config:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config), encoding="utf-8")
    if change is not None:
        change_tensors(folder, change)
    return folder


def change_tensors(folder: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    for shard in folder.glob("*.safetensors"):
        tensors = {name: change(name, own) for name, own in load_file(shard).items()}
        save_file(tensors, shard)


def gate(candidate: Path, text: Path, out: Path, **options: Any) -> Record:
    """The record of `candidate` beside octavo-tiny, from the file in `out`."""
    values = {"baseline": str(TINY), "num_threads": 1, **options}
    out.mkdir(exist_ok=True)
    own = GateOptions(candidate=str(candidate), text=str(text), out=str(out), **values)
    last = list(_events(own))[-1]
    assert last["folder"] == str(out)
    return read(out / "quality.json")[-1]


def _events(options: GateOptions) -> Iterator[dict[str, Any]]:
    done = 0
    for event in run(options):
        if "progress" in event:
            assert done <= event["progress"]["done"] <= event["progress"]["of"]
            done = event["progress"]["done"]
        yield event
