"""Chooses models/octavo-tiny/calibration.jsonl from the training text: what GPTQ and AWQ read.

    python models/calibration.py .cache/train/train.jsonl

128 documents by a seed, of packages that have a document held out too, so that heldout-licences.txt
has their copyright files. Of each a stretch of whole paragraphs, from anywhere in it, of some 2,000
characters. The held-out documents themselves are no training text.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent / "octavo-tiny"
SEED, DOCUMENTS, STRETCH_CHARS, MOST_CHARS = 20, 128, 2_000, 4_000


def stretch(text: str, generator: random.Random) -> str:
    paragraphs = text.split("\n\n")
    left = [len("\n\n".join(paragraphs[index:])) for index in range(len(paragraphs))]
    starts = [index for index, chars in enumerate(left) if chars >= STRETCH_CHARS]
    begin = end = generator.choice(starts)
    while len("\n\n".join(paragraphs[begin:end])) < STRETCH_CHARS:
        end += 1
    return "\n\n".join(paragraphs[begin:end])[:MOST_CHARS]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path, help="train.jsonl, as models/train.py builds it")
    args = parser.parse_args()
    held = [json.loads(line) for line in (FOLDER / "heldout.jsonl").open(encoding="utf-8")]
    packages = {document["package"] for document in held}
    generator = random.Random(SEED)
    train = [json.loads(line) for line in args.train.open(encoding="utf-8")]
    pool = [
        document
        for document in train
        if document["package"] in packages and len(document["text"]) >= STRETCH_CHARS
    ]
    chosen = generator.sample(pool, DOCUMENTS)
    lines = [
        json.dumps({**own, "text": stretch(own["text"], generator)}, ensure_ascii=False) + "\n"
        for own in chosen
    ]
    (FOLDER / "calibration.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
