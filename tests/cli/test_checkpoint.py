from __future__ import annotations

from pathlib import Path

import pytest

from octavo.cli.checkpoint import CheckpointError, resolve
from tests.cli.checkpoints import write_empty_checkpoint


def test_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_empty_checkpoint(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert resolve("tiny") == resolve("./tiny") == checkpoint


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "holds no config.json"), ("model.safetensors", r"holds no \*.safetensors")],
)
def test_folder_without_a_needed_file_is_refused(
    tmp_path: Path, missing: str, message: str
) -> None:
    (write_empty_checkpoint(tmp_path) / missing).unlink()
    with pytest.raises(CheckpointError, match=message):
        resolve(str(tmp_path))


def test_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        resolve(str(write_empty_checkpoint(tmp_path) / "config.json"))


@pytest.mark.parametrize("model", ["/absent/model", "./absent", "a/b/c", "~/absent"])
def test_path_is_never_looked_for_on_the_hub(model: str) -> None:
    with pytest.raises(CheckpointError, match=f"^model {model}: no such folder$"):
        resolve(model)


def test_hub_that_cannot_be_reached_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"some/model: .* hub did not give it") as caught:
        resolve("some/model")
    assert "\n" not in str(caught.value)
