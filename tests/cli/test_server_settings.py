from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.cli.ports import Ports
from octavo.cli.server_folder import ServerFolder
from octavo.cli.server_settings import (
    LogLevel,
    ServerSettings,
    has_gpu,
    server_command,
    server_environment,
)
from octavo.errors import ConfigError

FOLDER = ServerFolder(
    version="2.51.0",
    binary=Path("/cache/bin/tritonserver"),
    backends=Path("/cache/backends"),
    library_path=(Path("/site/nvidia_pytriton.libs"), Path("/python/lib")),
)


def settings(**changes: object) -> ServerSettings:
    return ServerSettings(**{"repository": Path("/models"), **changes})  # type: ignore[arg-type]


CONTAINER = replace(FOLDER, version="2.71.0", library_path=())


def command(
    folder: ServerFolder = FOLDER,
    *,
    gpu: bool = False,
    shm_prefix: str | None = "octavo_shm_1_2_ab_",
    **changes: object,
) -> list[str]:
    return server_command(
        settings(**changes), folder, closed_key="k3y", shm_prefix=shm_prefix, gpu=gpu
    )


def test_command_binds_every_service_to_its_address_and_port() -> None:
    arguments = command(ports=Ports.starting_at(9000), host="127.0.0.2")
    assert arguments[0] == "/cache/bin/tritonserver"
    assert {
        "--model-repository=/models",
        "--backend-directory=/cache/backends",
        "--http-address=127.0.0.2",
        "--grpc-address=127.0.0.2",
        "--metrics-address=127.0.0.2",
        "--http-port=9000",
        "--grpc-port=9001",
        "--metrics-port=9002",
        "--backend-config=python,shm-region-prefix-name=octavo_shm_1_2_ab_",
        "--backend-config=python,shm-default-byte-size=16777216",
    } <= set(arguments)


def test_relative_repository_is_made_absolute() -> None:
    assert f"--model-repository={Path.cwd()}/here" in command(repository=Path("here"))


def test_contract_chooses_the_configuration_by_name() -> None:
    assert not any("model-config-name" in each for each in command())
    assert "--model-config-name=vllm" in command(contract="vllm")


def test_gpu_options_are_set_only_without_a_gpu() -> None:
    on_cpu = {"--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"}
    assert on_cpu <= set(command())
    assert not on_cpu & set(command(gpu=True))


def test_server_may_take_longer_to_leave_than_the_engine_to_drain() -> None:
    assert "--exit-timeout-secs=15" in command(drain_timeout_s=9.5)
    environment = server_environment(settings(drain_timeout_s=9.5), FOLDER, {})
    assert environment["OCTAVO_ENGINE_DRAIN_TIMEOUT_S"] == "9.5"


@pytest.mark.parametrize(
    ("level", "flags"),
    [
        ("error", {"--log-warning=false", "--log-info=false"}),
        ("warning", {"--log-info=false"}),
        ("info", set()),
        ("verbose", {"--log-verbose=1"}),
    ],
)
def test_log_level(level: LogLevel, flags: set[str]) -> None:
    assert {each for each in command(log_level=level) if each.startswith("--log")} == flags


def test_extra_arguments_come_last_so_that_they_win() -> None:
    assert command(extra_arguments=("--log-verbose=2",))[-1] == "--log-verbose=2"


def test_newer_server_gets_the_bounds_that_it_alone_has() -> None:
    bounds = {
        "--http-max-input-size=16777216",
        "--grpc-max-response-pool-size=131072",
        "--allow-client-shm=false",
    }
    assert set(command(CONTAINER)) - set(command()) == bounds


@pytest.mark.parametrize("folder", [FOLDER, CONTAINER], ids=lambda folder: str(folder.version))
def test_models_and_shared_memory_are_closed_to_all_callers(folder: ServerFolder) -> None:
    closed = "shared-memory,model-repository,trace,logging:closed=k3y"
    assert {
        "--model-control-mode=none",
        f"--http-restricted-api={closed}",
        f"--grpc-restricted-protocol={closed}",
    } <= set(command(folder))


def test_region_names_are_left_to_triton_without_a_prefix() -> None:
    assert not any("region-prefix" in each for each in command(shm_prefix=None))


@pytest.mark.parametrize(
    ("folder", "argument", "message"),
    [
        (FOLDER, "--http-max-input-size=1", "--http-max-input-size: Triton 2.51.0 has no such"),
        (CONTAINER, "--trace-file=x", "--trace-file: Triton 2.71.0 has no such flag"),
        (replace(FOLDER, version="2.60.0"), "--id=x", "Triton 2.60.0: .* only 2.51.0, 2.71.0's"),
        (FOLDER, "http-port=1", "server argument http-port=1: not of the form --flag"),
    ],
    ids=["too-new", "gone", "version", "no-flag"],
)
def test_flag_that_the_server_does_not_have_is_refused(
    folder: ServerFolder, argument: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        command(folder, extra_arguments=(argument,))


def test_environment_finds_libraries_and_this_python_first() -> None:
    base = {"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/mine", "KEPT": "yes"}
    environment = server_environment(settings(), FOLDER, base)
    assert environment["PATH"] == f"{sys.prefix}/bin:/usr/bin"
    assert environment["LD_LIBRARY_PATH"] == "/site/nvidia_pytriton.libs:/python/lib:/mine"
    assert environment["LC_ALL"] == "C.UTF-8"
    assert environment["KEPT"] == "yes"


def test_engine_settings_travel_in_the_environment_and_override_the_users() -> None:
    base = {"OCTAVO_ENGINE_DTYPE": "float16", "OCTAVO_ENGINE_BLOCK_SIZE": "8"}
    overrides = {"dtype": "float32", "max_num_seqs": "4"}
    chosen = settings(model=Path("/m/tiny"), engine_overrides=overrides)
    environment = server_environment(chosen, FOLDER, base)
    assert environment["OCTAVO_MODEL"] == "/m/tiny"
    assert environment["OCTAVO_ENGINE_DTYPE"] == "float32"
    assert environment["OCTAVO_ENGINE_MAX_NUM_SEQS"] == "4"
    assert environment["OCTAVO_ENGINE_BLOCK_SIZE"] == "8"


def test_model_of_the_repository_is_left_alone_when_none_is_given() -> None:
    assert "OCTAVO_MODEL" not in server_environment(settings(), FOLDER, {})


def test_urls_lead_to_this_machine_when_every_address_is_listened_on() -> None:
    everywhere = settings(host="0.0.0.0", ports=Ports.starting_at(9000))
    assert everywhere.generate_stream_url == ("http://127.0.0.1:9000/v2/models/llm/generate_stream")
    assert everywhere.grpc_url == "127.0.0.1:9001"
    assert everywhere.metrics_url == "http://127.0.0.1:9002/metrics"


def test_gpu_is_known_by_its_driver(tmp_path: Path) -> None:
    assert not has_gpu(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert has_gpu(tmp_path)
