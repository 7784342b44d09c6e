"""quality.json holds for the bytes that were measured, and for no others."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.quality.evidence import Hashes, Record, check, find, read, write
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
    "content", ["", "[]", "{}", '{"schema": 2, "records": []}', '{"schema": 1}',
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
    from octavo.models.weights import checkpoint_digest

    assert Hashes.of(TINY, 2).weights == checkpoint_digest(TINY, 1).hex()
