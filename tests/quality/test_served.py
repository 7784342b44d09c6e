"""What is quantized is served on evidence of its own, and on nothing else. Real engines, on
octavo-tiny."""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factories import write_checkpoint
from octavo.config import make_config
from octavo.engine import Engine
from octavo.errors import ConfigError, QualityGateError
from octavo.quality import evidence
from octavo.quality.evidence import Record, file_hash
from octavo.quality.served import ServedQuality
from octavo.quality.verdict import Outcome
from octavo.quantization.job import QuantizeOptions
from octavo.quantization.writer import quantize_checkpoint
from tests.quality.texts import TINY, change_tensors, copy_of_tiny, gate, write_text

OCTAVO = Path(sys.executable).with_name("octavo")
KV = {"kv_cache_dtype": "int8"}
WEIGHTS = {"weight_format": "int8"}


def load(folder: Path, **settings: Any) -> ServedQuality:
    own = {"num_threads": 1, "device": "cpu", "kv_cache_bytes": "8MiB", "max_num_seqs": 2}
    return Engine(make_config(model=folder, **{**own, **settings})).quality


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(QualityGateError) as caught:
        load(folder, **settings)
    message = str(caught.value)
    assert message.startswith(f"quality_gate = 'require': {folder.name} (weights ")
    assert "\n" not in message
    return message


def command_of(message: str) -> list[str]:
    """What it says to run, for a shell."""
    return shlex.split(message[message.index("octavo gate ") :])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl", longest=1_100)


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """octavo-tiny with evidence for int8 KV memory."""
    folder = copy_of_tiny(tmp_path_factory.mktemp("rounded") / "m")
    assert gate(folder, text, folder, baseline=str(folder), **KV).outcome is Outcome.PASS
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A checkpoint of 8 bits with evidence, and what it was made from beside it."""
    top = tmp_path_factory.mktemp("stored")
    baseline, folder = copy_of_tiny(top / "m"), top / "m-int8"
    options = QuantizeOptions(
        model=str(baseline), out=str(folder), bits=8, group_size=None, threads=1
    )
    assert list(quantize_checkpoint(options))
    assert gate(folder, text, folder, baseline=str(baseline)).outcome is Outcome.PASS
    return folder


@pytest.fixture
def copied(stored: Path, tmp_path: Path) -> Path:
    """Of `stored`, to be changed."""
    shutil.copytree(stored.parent, tmp_path / "all")
    return tmp_path / "all" / "m-int8"


def rewrite(folder: Path, **changes: Any) -> Record:
    """The only record of a folder with other values."""
    (record,) = evidence.read(folder / "quality.json")
    changed = replace(record, **changes)
    evidence.write(folder / "quality.json", changed)
    return changed


def test_what_is_not_quantized_needs_no_evidence(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert load(TINY).state == load(TINY, kv_cache_dtype="bfloat16").state == "unquantized"
    assert "quality" not in caplog.text


def test_kv_memory_alone_is_served_on_evidence(
    rounded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (record,) = evidence.read(rounded / "quality.json")
    with caplog.at_level(logging.INFO):
        quality = load(rounded, **KV)
    assert quality.state == quality.label == "pass" and quality.record == record
    loss = record.numbers.loss
    said = f"KV int8 · perplexity {100 * loss.estimate:+.2f} % (≤ {100 * loss.upper:+.2f} %)"
    assert f"quality gate passed: {said} of margin 1 %; measured {record.date}" in caplog.text
    assert f"beyond {record.text.longest} has not been measured" in caplog.text


def test_kv_memory_that_was_measured_in_short_contexts_is_served_in_those(tmp_path: Path) -> None:
    folder = copy_of_tiny(tmp_path / "m")
    text = write_text(tmp_path / "short.jsonl")
    assert gate(folder, text, folder, baseline=str(folder), **KV).outcome is Outcome.PASS
    said = "(no window of short.jsonl was longer than 160 tokens; KV int8 is to be measured on one"
    assert f"its evidence is of short contexts {said} of 1,024 or more)" in refused(folder, **KV)
    assert load(folder, max_model_len=160, **KV).state == "pass"


def test_another_model_of_the_baselines_name_is_not_it(copied: Path) -> None:
    shutil.rmtree(copied.parent / "m")
    other = write_checkpoint(copied.parent / "m")
    (other / "tokenizer.json").write_text("{}")
    assert load(copied).state == "pass"


def test_a_quantized_checkpoint_is_served_on_evidence(stored: Path) -> None:
    quality = load(stored)
    assert quality.state == "pass" and quality.line.startswith("int8 · perplexity ")


def test_its_baseline_may_be_elsewhere(copied: Path) -> None:
    shutil.rmtree(copied.parent / "m")
    assert load(copied).state == "pass"


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        (KV, "--kv int8"),
        (WEIGHTS, "--weights int8"),
        ({**WEIGHTS, **KV, "kv_cache_skip_layers": [0, 3]},
         "--weights int8 --kv int8 --kv-skip-layers 0,3"),
        ({"weight_format": "w4a8", "weight_group_size": 64, "dtype": "float32",
          "quality_margin": 0.02},
         "--weights w4a8 --group-size 64 --dtype float32 --device cpu --margin 0.02"),
        ({"weight_format": "int4", "weight_group_size": 64, "lm_head_format": "bfloat16"},
         "--weights int4 --group-size 64 --lm-head bfloat16"),
    ],
)  # fmt: skip
def test_missing_evidence_is_refused(
    tmp_path: Path, settings: dict[str, Any], command: str
) -> None:
    folder = copy_of_tiny(tmp_path / "my model")
    message = refused(folder, **settings)
    assert f"there is no evidence for it ({folder}/quality.json is not there)" in message
    own = command if "--device" in command else f"{command} --device cpu"
    expected = ["octavo", "gate", str(folder), str(folder), *own.split(), "--text", "FILE"]
    assert command_of(message) == expected


def test_the_command_brings_the_evidence(tmp_path: Path, text: Path) -> None:
    """As it is printed, with a file for FILE."""
    folder = copy_of_tiny(tmp_path / "my model")
    settings = {
        "weight_format": "w8a8", **KV, "kv_cache_skip_layers": [1], "quality_margin": 0.015,
        "dtype": "float32", "device": "auto",
    }  # fmt: skip
    words = command_of(refused(folder, **settings))
    words[words.index("FILE")] = str(text)
    done = subprocess.run([str(OCTAVO), *words[1:]], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert load(folder, **settings).state == "pass"
    assert "has only: weights w8a8" in refused(folder, **settings | {"dtype": "bfloat16"})


def test_a_combination_has_evidence_of_its_own(rounded: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(rounded, folder)
    gate(folder, text, folder, baseline=str(folder), **WEIGHTS)
    assert load(folder, **KV).state == load(folder, **WEIGHTS).state == "pass"
    assert "there is no evidence" in refused(folder, **WEIGHTS, **KV)


def change_a_weight(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def add_a_space(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8") + " ", encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("m-int8/model-00001-of-*.safetensors", "candidate weights"),
        ("m-int8/config.json", "candidate config.json"),
        ("m-int8/tokenizer.json", "candidate tokenizer.json"),
        ("m/model.safetensors", "baseline weights"),
        ("m/config.json", "baseline config.json"),
        ("m/tokenizer.json", "baseline tokenizer.json"),
    ],
)
def test_a_changed_file_makes_it_stale(copied: Path, file: str, part: str) -> None:
    (path,) = copied.parent.glob(file)
    (change_a_weight if path.suffix == ".safetensors" else add_a_space)(path)
    message = refused(copied)
    assert f"its evidence is stale ({part}: SHA-256 " in message
    words = ["octavo", "gate", str(copied.parent / "m"), str(copied)]
    assert command_of(message) == [*words, "--device", "cpu", "--text", "FILE"]


def test_another_source_makes_it_stale(copied: Path) -> None:
    """`octavo quantize` notes what it read, also where that is no longer at hand."""
    shutil.rmtree(copied.parent / "m")
    manifest = json.loads((copied / "quantization.json").read_text())
    manifest["source"] = file_hash(copied / "config.json")
    (copied / "quantization.json").write_text(json.dumps(manifest))
    message = refused(copied)
    assert "(baseline weights: quantization.json says it was made from weights of" in message
    assert "and the BASELINE that it was made from" in message
    assert command_of(message)[2] == "BASELINE"


@pytest.mark.parametrize("version", ["weight_rounding", "kv_layout"])
def test_another_version_of_a_form_makes_it_stale(copied: Path, version: str) -> None:
    (record,) = evidence.read(copied / "quality.json")
    rewrite(copied, versions=record.versions | {version: "0"})
    assert f"its evidence is stale ({version}: version 1; measured with 0)" in refused(copied)


def test_what_did_not_pass_is_refused(copied: Path, text: Path) -> None:
    few = write_text(copied.parent / "few.jsonl", 3, 100)
    record = gate(copied, few, copied, baseline=str(copied.parent / "m"))
    assert record.outcome is Outcome.INCONCLUSIVE
    message = refused(copied)
    assert f"it did not pass when it was measured (inconclusive: {record.reason})" in message

    change_tensors(copied, lambda name, own: own * 1.3 if name.endswith("scale") else own)
    record = gate(copied, text, copied, baseline=str(copied.parent / "m"))
    assert record.outcome is Outcome.FAIL
    assert f"it did not pass when it was measured (fail: {record.reason})" in refused(copied)


def test_a_wider_margin_is_refused(copied: Path) -> None:
    """One that the configured margin is narrower than is measured once more."""
    loss = evidence.read(copied / "quality.json")[0].numbers.loss
    message = refused(copied, quality_margin=loss.upper / 2)
    assert "what it may have lost is more than the margin (perplexity loss is up to" in message
    assert command_of(message)[-3] == str(loss.upper / 2)
    wide = replace(loss, upper=0.015)
    record = evidence.read(copied / "quality.json")[0]
    rewrite(copied, margin=0.02, numbers=replace(record.numbers, loss=wide))
    assert "perplexity loss is up to +1.500%; the margin is 1 %" in refused(copied)
    assert load(copied, quality_margin=0.02).state == "pass"


@pytest.mark.parametrize("content", ["", "{}", '{"schema": 1, "records": [{"date": "today"}]}'])
def test_evidence_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    folder = copy_of_tiny(tmp_path / "m")
    (folder / "quality.json").write_text(content)
    assert f"({folder}/quality.json: " in refused(folder, **KV)


def test_warn_says_the_same_and_serves(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    message = refused(copied, **KV)
    quality = load(copied, quality_gate="warn", **KV)
    assert (quality.state, quality.label, quality.record) == ("warn", "ungated", None)
    (said,) = [r for r in caplog.records if "NOT BEEN PASSED" in r.getMessage()]
    assert said.levelno == logging.WARNING
    assert message.replace("'require'", "'warn'", 1) in said.getMessage()
    assert load(copied, quality_gate="warn").state == "pass"


def test_off_says_once_that_it_is_ungated(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copied / "quality.json").write_text("no evidence")
    quality = load(copied, quality_gate="off")
    assert (quality.state, quality.label, quality.record) == ("off", "ungated", None)
    (said,) = [r.getMessage() for r in caplog.records if "ungated" in r.getMessage()]
    assert said.startswith("quality_gate = 'off': served ungated") and "weights int8" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quality_margin": 0.03}, "quality_margin = 0.03: .* less than or equal to 0.02"),
        ({"quality_margin": 0}, "quality_margin = 0"),
        ({"quality_gate": "no"}, "quality_gate = 'no': .* 'require', 'warn' or 'off'"),
    ],
)
def test_settings_have_bounds(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(model="m", **settings)


def test_what_is_shipped_is_served_on_its_evidence() -> None:
    int4 = load(TINY.with_name("octavo-tiny-int4"))
    assert int4.state == "pass" and int4.form.weights == "int4"
    eight = [load(TINY, **settings).state for settings in (KV, WEIGHTS, {**KV, **WEIGHTS})]
    assert eight == ["pass"] * 3
