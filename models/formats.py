"""What a model's quantized forms lose on its held-out documents, measured and told in its card.

    python models/formats.py octavo-tiny --ship

Each form goes through `octavo quantize` and `octavo gate`. Evidence of what is rounded as it is
loaded stays beside the model, so that it may be served; `--ship` keeps int4 by the best method as a
model of its own. The methods of int4 are held against each other by bench/quantizers.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

HERE = Path(__file__).resolve().parent
TEXTS = HERE / "octavo-tiny"  # the documents are the same for every model
HELD_OUT, CALIBRATION = TEXTS / "heldout.jsonl", TEXTS / "calibration.jsonl"
METHODS = ("rtn", "awq", "gptq")
GROUP_SIZE = 64
# Rounded as the engine loads them, by the gate's own flags.
LOADED = {
    "int8": ["--weights", "int8"],
    "w8a8": ["--weights", "w8a8"],
    "KV memory int8": ["--kv", "int8"],
    "int8, KV memory int8": ["--weights", "int8", "--kv", "int8"],
}
BEGIN, END = "<!-- formats -->", "<!-- /formats -->"


def octavo(*arguments: object, most: int) -> None:
    """Runs a command; exit codes up to `most` are answers."""
    command = [str(Path(sys.executable).with_name("octavo")), *map(str, arguments)]
    print("$ octavo", *map(str, arguments), flush=True)
    status = subprocess.run(command).returncode
    if status > most:
        raise typer.Exit(status)


def gate(baseline: Path, candidate: Path, *flags: str) -> dict[str, Any]:
    """The record of a form, measured now."""
    octavo("gate", baseline, candidate, "--text", HELD_OUT, *flags, most=1)
    records = json.loads((candidate / "quality.json").read_text(encoding="utf-8"))["records"]
    newest: dict[str, Any] = max(records, key=lambda record: record["date"])
    return newest


def quantized(model: Path, out: Path, method: str) -> Path:
    """A folder of int4 by a method; kept if it is there and complete."""
    if (out / "config.json").exists():
        return out
    text = [] if method == "rtn" else ["--calibration", CALIBRATION, "--calibration-tokens", 65536]
    octavo("quantize", model, "--format", "int4", "--group-size", GROUP_SIZE, "--method", method,
           "--out", out, *text, most=0)  # fmt: skip
    return out


def row(name: str, record: dict[str, Any]) -> str:
    numbers, loss = record["numbers"], record["numbers"]["loss"]
    return (
        f"| {name} | {numbers['candidate_perplexity']:.3f} | {loss['estimate']:+.3%} | "
        f"{loss['lower']:+.3%} to {loss['upper']:+.3%} | {numbers['mean_kl_nats']:.1e} | "
        f"{numbers['top1_ratio']:.2%} | {record['outcome']} |"
    )


def section(name: str, records: dict[str, dict[str, Any]], pairs: list[dict[str, Any]]) -> str:
    first = next(iter(records.values()))
    best = [pair for pair in pairs if pair["name"] == METHODS[-1] and pair["against"] != name]
    lines = [
        BEGIN,
        "## Formats",
        "",
        "Perplexity of the quantized forms beside the bf16 weights' "
        f"{first['numbers']['baseline_perplexity']:.3f}, by `octavo gate` on the held-out "
        "documents\n"
        f"({first['numbers']['tokens']:,} tokens, windows of {first['text']['context']:,}, margin "
        "1 %; bounds one-sided, 95 %):",
        "",
        "| form | perplexity | loss | bounds | mean KL, nats | top-1 agreement | verdict |",
        "|---|---|---|---|---|---|---|",
        *(row(form, record) for form, record in records.items()),
        "",
        *(
            f"- {pair['name']} against {pair['against']}, document by document: "
            f"{pair['estimate']:+.2%} perplexity ({pair['lower']:+.2%} to {pair['upper']:+.2%})."
            for pair in best
        ),
        f"- int4 is in groups of {GROUP_SIZE}, lm_head and embedding as they are; calibrated on "
        "`models/octavo-tiny/calibration.jsonl`.",
        f"- `python models/formats.py {name}` measures all of it again.",
        END,
    ]
    return "\n".join(lines)


def write_card(path: Path, text: str) -> None:
    """The section in the place of its older self, or before the data's."""
    card = path.read_text(encoding="utf-8")
    if BEGIN in card:
        card = card[: card.index(BEGIN)] + text + card[card.index(END) + len(END) :]
    else:
        card = card.replace("## Data\n", text + "\n\n## Data\n", 1)
    path.write_text(card, encoding="utf-8")


def ship(model: Path, folder: Path, out: Path) -> None:
    """int4 as a model of its own, with its evidence and a card."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out)
    record = gate(model, out)
    table = row("int4", record)
    (out / "README.md").write_text(
        f"# {out.name}\n\n[{model.name}](../{model.name}/README.md) with weights of 4 bits in "
        f"groups of {GROUP_SIZE}, by\n`octavo quantize --method {METHODS[-1]}` (compressed-tensors "
        "pack-quantized). The lm_head, which is the\nembedding too, has 16 bits. `quality.json` "
        "holds the gate's evidence, the page beside it shows it.\n\n"
        "| form | perplexity | loss | bounds | mean KL, nats | top-1 agreement | verdict |\n"
        f"|---|---|---|---|---|---|---|\n{table}\n\n"
        f"`python models/formats.py {model.name} --ship` makes this folder.\n",
        encoding="utf-8",
    )


def main(
    name: Annotated[str, typer.Argument(help="A folder of models/.")],
    work: Annotated[Path, typer.Option(help="Where quantized folders go.")] = HERE.parent
    / ".cache"
    / "train",
    shipped: Annotated[bool, typer.Option("--ship", help="Keep int4 as a model.")] = False,
) -> None:
    """Quantize a model in all forms, measure each, write the card's table."""
    model, records = HERE / name, {}
    for form, flags in LOADED.items():
        records[form] = gate(model, model, *flags)
    folders = []
    for method in METHODS:
        folders.append(quantized(model, work / name / method, method))
        records[f"int4, {method}"] = gate(model, folders[-1])
    pairs = work / name / "pairs.json"
    subprocess.run(
        [sys.executable, HERE.parent / "bench" / "quantizers.py", model, *folders,
         "--text", HELD_OUT, "--json", pairs], check=True,
    )  # fmt: skip
    write_card(model / "README.md", section(name, records, json.loads(pairs.read_text())))
    if shipped:
        ship(model, folders[-1], HERE / f"{name}-int4")


if __name__ == "__main__":
    typer.run(main)
