from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from octavo.config import load_config
from tests.container import compose
from tests.container.compose import ROOT, binds, engines, on_host, seconds

SCHEMA = json.loads((Path(__file__).parent / "compose-spec.json").read_text("utf-8"))
ENGINE = pytest.mark.parametrize("name", ["octavo-cpu", "octavo-gpu"])


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = compose.load()["services"]
    return loaded


def server_flags(*options: str) -> dict[str, str]:
    """Of the command that the image runs."""
    answer = subprocess.run(
        [f"{sys.prefix}/bin/octavo", "exec-server", "--print", *options],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return dict(re.findall(r"--([a-z-]+)=(\S+)", answer.stdout))


def test_file_follows_the_published_schema() -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(compose.load())


@pytest.mark.parametrize("where", ["services", "octavo-cpu", "healthcheck"])
def test_schema_refuses_a_misspelt_key(where: str) -> None:
    file = compose.load()
    service = file["services"]["octavo-cpu"]
    place = {
        "services": file,
        "octavo-cpu": service,
        "healthcheck": service["healthcheck"],
    }[where]
    place["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.Draft202012Validator(SCHEMA).validate(file)


def compose_command() -> list[str]:
    """Docker Compose 2.24 or later, the first to know `required` in env_file."""
    candidates = (
        [shutil.which("docker-compose", path=f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}")],
        [shutil.which("docker"), "compose"],
    )
    for candidate in candidates:
        command = [part for part in candidate if part]
        if len(command) < len(candidate):
            continue
        answer = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
        number = re.match(r"v?(\d+)\.(\d+)", answer.stdout)
        if answer.returncode == 0 and number and tuple(map(int, number.groups())) >= (2, 24):
            return command
    reason = "no Docker Compose 2.24: pip install --no-deps -r requirements/ci.txt has one"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def services_by_compose(env: Path, *options: str) -> set[str]:
    command = [*compose_command(), f"--env-file={env}", *options, "config", "--format=json"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    return set(json.loads(answer.stdout)["services"])


@pytest.mark.parametrize("profile", ["cpu", "gpu", "loadtest"])
def test_compose_itself_takes_the_file(profile: str) -> None:
    none = Path(os.devnull)
    assert services_by_compose(none, "--profile", profile) == compose.started(profile)


def test_compose_itself_takes_the_example(tmp_path: Path) -> None:
    example = compose.example()
    env = tmp_path / "env"
    env.write_text("".join(f"{name}={value}\n" for name, value in example.items()), "utf-8")
    assert services_by_compose(env) == compose.started(example["COMPOSE_PROFILES"])


def test_profiles_start_one_engine_and_what_watches_it() -> None:
    watching = {"prometheus", "grafana"}
    assert compose.started() == watching
    assert compose.started("cpu") == watching | {"octavo-cpu"}
    assert compose.started("gpu") == watching | {"octavo-gpu"}
    assert compose.started("cpu", "loadtest") == watching | {"octavo-cpu", "locust"}


def test_engines_differ_in_their_image_and_the_gpu_alone() -> None:
    cpu, gpu = engines().values()
    (device,) = gpu.pop("deploy")["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    for service, target in ((cpu, "cpu"), (gpu, "gpu")):
        assert service.pop("build")["target"] == target
        assert service.pop("image") == f"octavo:{target}"
        assert service.pop("profiles") == [target]
    assert cpu == gpu


def test_example_shows_every_variable_and_its_default() -> None:
    shown = {
        name: value
        for name, value in compose.example().items()
        if not name.startswith("OCTAVO_ENGINE_") and name != "COMPOSE_PROFILES"
    }
    assert shown == compose.variables()


def test_engine_settings_of_the_example_are_the_engines_own() -> None:
    toml = ROOT / "model_repository" / "llm" / "1" / "engine.toml"
    shown = {k: v for k, v in compose.example().items() if k.startswith("OCTAVO_ENGINE_")}
    assert shown
    assert load_config(toml, shown) == load_config(toml, {})


def test_everything_mounted_exists_and_is_read_only(services: dict[str, dict[str, Any]]) -> None:
    mounted = [bind for service in services.values() for bind in binds(service)]
    assert len(mounted) >= 5
    for source, _, read_only in mounted:
        assert source.exists(), source
        assert read_only, source


def test_paths_in_containers_are_mounted_files(services: dict[str, dict[str, Any]]) -> None:
    prometheus, grafana = services["prometheus"], services["grafana"]
    (config,) = [each for each in prometheus["command"] if each.startswith("--config.file=")]
    assert on_host(prometheus, config.partition("=")[2]).is_file()
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert on_host(grafana, home).is_file()
    provisioning = on_host(grafana, "/etc/grafana/provisioning")
    provider = yaml.safe_load((provisioning / "dashboards" / "octavo.yml").read_text("utf-8"))
    (folder,) = [each["options"]["path"] for each in provider["providers"]]
    assert on_host(grafana, folder) == on_host(grafana, home).parent


def test_own_checkpoint_is_mounted_where_the_server_looks() -> None:
    service = compose.load({"OCTAVO_MODEL": "/data/my-llama"})["services"]["octavo-cpu"]
    model = service["environment"]["OCTAVO_MODEL"]
    assert on_host(service, model) == Path("/data/my-llama")
    (volume,) = service["volumes"]
    assert volume["bind"]["create_host_path"] is False


@ENGINE
def test_ports_are_those_the_server_listens_on(name: str) -> None:
    flags = server_flags()
    listening = [flags[f"{service}-port"] for service in ("http", "grpc", "metrics")]
    assert [port.split(":")[-1] for port in engines()[name]["ports"]] == listening


def test_ports_of_the_host_are_on_loopback(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert len(ports) == 9
    assert all(port.startswith("127.0.0.1:") for port in ports)
    widened = compose.load({"OCTAVO_BIND": "0.0.0.0"})["services"]["octavo-cpu"]["ports"]
    assert [port.split(":")[0] for port in widened] == ["0.0.0.0", "0.0.0.0", "127.0.0.1"]


@ENGINE
def test_prometheus_and_locust_find_either_engine(
    services: dict[str, dict[str, Any]], name: str
) -> None:
    (alias,) = services[name]["networks"]["default"]["aliases"]
    flags = server_flags()
    targets = on_host(services["prometheus"], "/etc/prometheus/targets.yml")
    assert yaml.safe_load(targets.read_text("utf-8")) == [
        {"targets": [f"{alias}:{flags['metrics-port']}"]}
    ]
    assert f"http://{alias}:{flags['http-port']}" in services["locust"]["command"]
    assert services["locust"]["depends_on"][name] == {
        "condition": "service_healthy",
        "required": False,
    }


@ENGINE
def test_container_outlasts_the_servers_own_bound_on_leaving(name: str) -> None:
    grace_s = seconds(engines()[name]["stop_grace_period"])
    assert grace_s >= int(server_flags()["exit-timeout-secs"]) + 5


@ENGINE
def test_health_check_has_time_for_its_own_bound(name: str) -> None:
    check = engines()[name]["healthcheck"]
    # It watches the metrics for some seconds after that.
    assert seconds(check["timeout"]) >= float(check["test"][-1]) + 10


@ENGINE
def test_engine_has_shared_memory_locks_and_little_else(name: str) -> None:
    service = engines()[name]
    assert service["shm_size"] == "1gb"
    assert service["ulimits"] == {"memlock": -1, "stack": 64 * 2**20}
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"


def test_nobody_can_log_in_to_grafana(services: dict[str, dict[str, Any]]) -> None:
    environment = services["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"


def test_images_from_elsewhere_are_pinned(services: dict[str, dict[str, Any]]) -> None:
    assert _floating(services.values()) == []


def _floating(services: Iterable[dict[str, Any]]) -> list[str]:
    images = [service["image"] for service in services if "build" not in service]
    assert images
    return [image for image in images if not re.search(r":v?\d+\.\d+\.\d+$", image)]
