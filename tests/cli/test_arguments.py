from __future__ import annotations

from pathlib import Path

import pytest

from octavo.cli.arguments import ServeArguments, chosen_ports, engine_overrides, server_settings
from octavo.cli.ports import Ports
from octavo.errors import ConfigError, OctavoError
from tests.cli.checkpoints import write_empty_checkpoint


def repository(tmp_path: Path, toml: str | None = None) -> Path:
    version = tmp_path / "repository" / "llm" / "1"
    version.mkdir(parents=True)
    if toml is not None:
        (version / "engine.toml").write_text(toml, encoding="utf-8")
    return tmp_path / "repository"


def test_named_options_and_assignments_become_overrides() -> None:
    named = {"dtype": "float32", "num_threads": 2, "max_num_seqs": None}
    assert engine_overrides(named, ["block_size=32", "slo_ttft_s=1=2"]) == {
        "dtype": "float32",
        "num_threads": "2",
        "block_size": "32",
        "slo_ttft_s": "1=2",
    }


@pytest.mark.parametrize("assignment", ["block_size", "=3", "Block=3", "a-b=3"])
def test_assignment_of_another_form_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match=f"--set {assignment}: not of the form field=value"):
        engine_overrides({}, [assignment])


def test_setting_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="--set dtype=float16: dtype is given twice"):
        engine_overrides({"dtype": "float32"}, ["dtype=float16"])


def test_one_port_can_be_taken_out_of_the_row() -> None:
    assert chosen_ports(ServeArguments(port=9000, metrics_port=9100)) == Ports(9000, 9001, 9100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (ServeArguments(port=65534), "port: 65534 is outside 1 to 65533"),
        (ServeArguments(port=9000, grpc_port=9000), "must differ"),
    ],
    ids=["out-of-range", "twice"],
)
def test_impossible_ports_are_refused(arguments: ServeArguments, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen_ports(arguments)


def test_arguments_reach_the_settings(tmp_path: Path) -> None:
    checkpoint = write_empty_checkpoint(tmp_path / "tiny")
    settings = server_settings(
        ServeArguments(
            model=str(checkpoint),
            port=9000,
            contract="vllm",
            repository=repository(tmp_path),
            drain_timeout_s=3,
            assignments=["block_size=32"],
        )
    )
    assert settings.model == checkpoint
    assert settings.ports == Ports(9000, 9001, 9002)
    assert settings.contract == "vllm"
    assert settings.drain_timeout_s == 3
    assert settings.engine_overrides == {"block_size": "32"}


def test_wrong_engine_setting_is_refused_before_a_server_is_started(tmp_path: Path) -> None:
    arguments = ServeArguments(
        model=str(write_empty_checkpoint(tmp_path / "tiny")),
        repository=repository(tmp_path, toml="block_size = 16\n"),
        assignments=["block_size=many"],
    )
    with pytest.raises(ConfigError, match="block_size = 'many'"):
        server_settings(arguments)


def test_repository_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=r"repository .*absent: no such folder"):
        server_settings(ServeArguments(repository=tmp_path / "absent"))
