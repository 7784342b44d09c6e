"""quality.json holds for the bytes that were measured, and for no others."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factories import write_checkpoint
from octavo.errors import ConfigError
from octavo.models.weights import checkpoint_digest
from octavo.quality.evidence import (
    LONG_CONTEXT_TOKENS,
    Hashes,
    Record,
    check,
    file_hash,
    find,
    read,
    write,
)
from octavo.quality.statistics import Bounds
from octavo.quality.verdict import Outcome
from tests.quality.texts import TINY, copy_of_tiny, gate, write_text


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """int8 beside what it was made of, and the folder with all files."""
    folder = tmp_path_factory.mktemp("evidence")
    copy_of_tiny(folder / "baseline")
    copy_of_tiny(folder / "candidate")
    text = write_text(folder / "text.jsonl")
    options = {"baseline": str(folder / "baseline"), "weight_format": "int8"}
    return gate(folder / "candidate", text, folder / "candidate", **options), folder


def findings(record: Record, folder: Path, margin: float = 0.01) -> list[str]:
    found = check(
        record, folder / "candidate", margin=margin,
        baseline=folder / "baseline", text=folder / "text.jsonl",
    )  # fmt: skip
    return [finding.part for finding in found]


def test_what_was_measured_holds(measured: tuple[Record, Path]) -> None:
    record, folder = measured
    assert record.outcome is Outcome.PASS and findings(record, folder) == []
    assert read(folder / "candidate" / "quality.json") == (record,)
    assert (folder / "candidate" / record.report).is_file()


@pytest.mark.parametrize("where", [0.0, 0.31, 0.77, 1.0])
@pytest.mark.parametrize(
    ("file", "part"),
    [
        *(
            (f"{side}/{file}", f"{side} {part}")
            for side in ("baseline", "candidate")
            for file, part in (
                ("model.safetensors", "weights"), ("config.json", "config.json"),
                ("tokenizer.json", "tokenizer.json"),
            )
        ),
        ("text.jsonl", "text"),
    ],
)  # fmt: skip
def test_a_changed_byte_is_found(
    measured: tuple[Record, Path], tmp_path: Path, file: str, part: str, where: float
) -> None:
    """One bit of it, wherever it is."""
    record, folder = measured
    shutil.copytree(folder, tmp_path / "all")
    changed = tmp_path / "all" / file
    content = bytearray(changed.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    changed.write_bytes(content)
    assert findings(record, tmp_path / "all") == [part]


def test_a_missing_file_is_named(measured: tuple[Record, Path], tmp_path: Path) -> None:
    record, folder = measured
    shutil.copytree(folder, tmp_path / "all")
    (tmp_path / "all" / "candidate" / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        findings(record, tmp_path / "all")


def test_the_index_is_part_of_the_weights(tmp_path: Path) -> None:
    """Where two files have a tensor of one name, it says whose is taken."""
    folder = write_checkpoint(tmp_path / "m", shards=2)
    file = folder / "model.safetensors.index.json"
    before = checkpoint_digest(folder, 1)
    index = json.loads(file.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))
    assert checkpoint_digest(folder, 1) != before


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja"])
def test_what_answers_depend_on_is_part_of_the_evidence(
    measured: tuple[Record, Path], tmp_path: Path, name: str
) -> None:
    record, folder = measured
    shutil.copytree(folder, tmp_path / "all")
    file = tmp_path / "all" / "candidate" / name
    file.write_text("{}")
    assert findings(record, tmp_path / "all") == [f"candidate {name}"]
    hashes = replace(record.candidate.hashes, chat={name: file_hash(file)})
    noted = replace(record, candidate=replace(record.candidate, hashes=hashes))
    assert findings(noted, tmp_path / "all") == []
    file.write_text("{ }")
    assert findings(noted, tmp_path / "all") == [f"candidate {name}"]
    file.unlink()
    assert findings(noted, tmp_path / "all") == [f"candidate {name}"]


@pytest.mark.parametrize(
    "numbers", [{"documents": 1}, {"mean_kl_nats": 3.0}, {"top1_ratio": 0.1},
                {"tokens_not_finite": 50}, {"loss": Bounds(0.02, 0.01, 0.03)}],
)  # fmt: skip
def test_a_pass_that_its_own_numbers_deny_is_none(
    measured: tuple[Record, Path], numbers: dict[str, Any]
) -> None:
    record, folder = measured
    denied = replace(record, numbers=replace(record.numbers, **numbers))
    assert findings(denied, folder) == ["verdict"]


def test_long_contexts_need_long_windows(measured: tuple[Record, Path]) -> None:
    """Of what rounds contexts: KV memory here, weights not."""
    record, folder = measured
    rounded = replace(record.candidate, form=replace(record.candidate.form, kv="int8"))

    def found(record: Record, context: int) -> list[str]:
        own = check(record, folder / "candidate", context=context)
        return [finding.kind for finding in own]

    assert found(record, 100_000) == []
    kv = replace(record, candidate=rounded)
    assert found(kv, record.text.longest + 1) == []
    assert found(kv, record.text.longest + 2) == ["context"]
    longer = replace(kv, text=replace(record.text, longest=LONG_CONTEXT_TOKENS))
    assert found(longer, 100_000) == []


def test_records_written_at_once_are_all_kept(
    measured: tuple[Record, Path], tmp_path: Path
) -> None:
    record, _ = measured
    sizes = [16, 32, 64, 128] * 4

    def one(size: int) -> None:
        form = replace(record.candidate.form, group_size=size)
        own = replace(record.candidate, form=form)
        write(tmp_path / "quality.json", replace(record, candidate=own))

    with ThreadPoolExecutor(len(sizes)) as pool:
        list(pool.map(one, sizes))
    kept = [own.candidate.form.group_size for own in read(tmp_path / "quality.json")]
    assert sorted(kept) == [16, 32, 64, 128]


def test_verdict_margin_and_versions(measured: tuple[Record, Path]) -> None:
    record, folder = measured
    assert findings(record, folder, margin=record.numbers.loss.upper / 2) == ["margin"]
    failed = replace(record, outcome=Outcome.FAIL)
    assert findings(failed, folder) == ["verdict"]
    old = replace(record, versions=record.versions | {"weight_rounding": "0"})
    assert findings(old, folder) == ["weight_rounding"]


def test_each_form_has_a_record(measured: tuple[Record, Path], tmp_path: Path) -> None:
    record, _ = measured
    file = tmp_path / "quality.json"
    assert read(file) == ()
    write(file, record)
    form = replace(record.candidate.form, kv="int8")
    other = replace(record, candidate=replace(record.candidate, form=form))
    write(file, other)
    write(file, replace(record, seconds=1.0))
    assert {(own.candidate.form.kv, own.seconds) for own in read(file)} == {
        ("bfloat16", 1.0), ("int8", record.seconds),
    }  # fmt: skip
    assert find(read(file), form) == other
    assert find(read(file), replace(form, weights="int4")) is None
    assert [path.name for path in tmp_path.iterdir()] == ["quality.json"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": NaN}', '{"schema": 2, "records": []}', '{"schema": 1}',
                '{"schema": 1, "records": [{"outcome": "pass"}]}', "[" * 100_000],
)  # fmt: skip
def test_what_is_no_evidence_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "quality.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"quality\.json: "):
        read(tmp_path / "quality.json")


def test_a_verdict_that_does_not_exist_is_refused(
    measured: tuple[Record, Path], tmp_path: Path
) -> None:
    content = json.loads((measured[1] / "candidate" / "quality.json").read_text())
    content["records"][0]["outcome"] = "passed"
    (tmp_path / "quality.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"records\.0\.outcome"):
        read(tmp_path / "quality.json")


def test_the_hash_of_weights_is_the_checkpoints() -> None:
    assert Hashes.of(TINY, 2).weights == checkpoint_digest(TINY, 1).hex()
