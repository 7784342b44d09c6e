"""From the settings of one server to tritonserver's arguments and environment: pure functions.

The embedded server and the container's, of another version, get their command line here alike.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from octavo.cli.ports import Ports, reachable_host
from octavo.cli.server_folder import ServerFolder
from octavo.cli.triton_flags import flags_in, flags_of
from octavo.config import ENV_MODEL, ENV_PREFIX
from octavo.errors import ConfigError

Contract = Literal["batched", "vllm"]
LogLevel = Literal["error", "warning", "info", "verbose"]

# Room for a burst of responses. A region grows by remapping on the hot path and never shrinks.
_SHM_BYTES = 16 * 2**20
# tritonserver's own bound on leaving must be longer than the engine's drain.
_EXIT_MARGIN_S = 5
# What nobody needs while serving, and what attacks on Triton have begun with.
_CLOSED_APIS = "shared-memory,model-repository,trace,logging"
# For servers that have the flag. A prompt that fills the longest context is far below the first;
# the second is more responses than an answer has tokens, so no stream ever waits for it.
_BOUNDS = {
    "http-max-input-size": 16 * 2**20,
    "grpc-max-response-pool-size": 2**17,
    "allow-client-shm": "false",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """One server. `engine_overrides` are fields of EngineConfig, as text."""

    repository: Path
    model: Path | None = None  # None: the repository says
    contract: Contract = "batched"
    engine_overrides: Mapping[str, str] = field(default_factory=dict)
    model_name: str = "llm"
    host: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports)
    log_file: Path | None = None  # None: a new one under the cache folder
    log_level: LogLevel = "info"
    ready_timeout_s: float = 180.0
    drain_timeout_s: float = 30.0
    server_dir: Path | None = None  # where the server folder is built; None: the cache folder
    extra_arguments: tuple[str, ...] = ()

    @property
    def exit_timeout_s(self) -> int:
        return math.ceil(self.drain_timeout_s) + _EXIT_MARGIN_S

    @property
    def http_url(self) -> str:
        return f"http://{reachable_host(self.host)}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """Without a scheme, as gRPC clients want it."""
        return f"{reachable_host(self.host)}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        return f"http://{reachable_host(self.host)}:{self.ports.metrics}/metrics"

    @property
    def generate_stream_url(self) -> str:
        return f"{self.http_url}/v2/models/{self.model_name}/generate_stream"


def server_command(
    settings: ServerSettings,
    folder: ServerFolder,
    *,
    closed_key: str,
    shm_prefix: str | None = None,
    gpu: bool,
) -> list[str]:
    """Raises ConfigError for a flag that this version of Triton does not have.

    Callers of the closed APIs must show `closed_key`: with one that nobody knows, nobody can.
    `shm_prefix` begins the names of the stubs' shared memory regions; None leaves them to Triton.
    """
    known = flags_of(folder.version)
    options: dict[str, object] = {
        "model-repository": settings.repository.resolve(),
        "backend-directory": folder.backends,
        "model-control-mode": "none",
        "exit-timeout-secs": settings.exit_timeout_s,
        "http-restricted-api": f"{_CLOSED_APIS}:closed={closed_key}",
        "grpc-restricted-protocol": f"{_CLOSED_APIS}:closed={closed_key}",
    }
    options.update((name, value) for name, value in _BOUNDS.items() if name in known)
    for service in ("http", "grpc", "metrics"):
        options[f"{service}-address"] = settings.host
        options[f"{service}-port"] = getattr(settings.ports, service)
    if settings.contract != "batched":
        options["model-config-name"] = settings.contract
    if not gpu:
        options["allow-gpu-metrics"] = "false"
        options["pinned-memory-pool-byte-size"] = 0
    options.update(_log_options(settings.log_level))
    backend: dict[str, object] = {
        "shm-default-byte-size": _SHM_BYTES,
        "shm-growth-byte-size": _SHM_BYTES,
    }
    if shm_prefix is not None:
        backend["shm-region-prefix-name"] = shm_prefix
    arguments = [
        # Completing a config means a second start of every stub, which our configs do not need.
        "--disable-auto-complete-config",
        *(f"--{name}={value}" for name, value in options.items()),
        *(f"--backend-config=python,{name}={value}" for name, value in backend.items()),
        *settings.extra_arguments,
    ]
    for flag in sorted(flags_in(arguments) - known):
        raise ConfigError(f"server argument --{flag}: Triton {folder.version} has no such flag")
    return [str(folder.binary), *arguments]


def server_environment(
    settings: ServerSettings, folder: ServerFolder, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    libraries = [str(path) for path in folder.library_path]
    if base.get("LD_LIBRARY_PATH"):
        libraries.append(base["LD_LIBRARY_PATH"])
    return {
        # Triton starts an instance for each GPU that it sees; an engine serves one.
        **({"CUDA_VISIBLE_DEVICES": "0"} if has_gpu() else {}),
        # The engine shares its cores with the server, its senders and often its clients. OpenMP
        # threads that wait by spinning for milliseconds, as they do by default, keep off the core
        # the very thread they wait for; those that sleep at once wake up late.
        "GOMP_SPINCOUNT": "5000",
        **base,
        # The stub embeds Python and takes the environment of the first python3 on PATH.
        "PATH": os.pathsep.join((f"{sys.prefix}/bin", base.get("PATH", os.defpath))),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "LC_ALL": "C.UTF-8",
        "PYTHONUTF8": "1",
        # What a killed stub has printed must be in the log.
        "PYTHONUNBUFFERED": "1",
        **engine_environment(settings),
    }


def engine_environment(settings: ServerSettings) -> dict[str, str]:
    """The part that octavo.config reads."""
    environment = {f"{ENV_PREFIX}DRAIN_TIMEOUT_S": f"{settings.drain_timeout_s:g}"}
    if settings.model is not None:
        environment[ENV_MODEL] = str(settings.model.resolve())
    for name, value in settings.engine_overrides.items():
        environment[f"{ENV_PREFIX}{name.upper()}"] = value
    return environment


def has_gpu(root: Path = Path("/")) -> bool:
    return (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidiactl").exists()


def _log_options(level: LogLevel) -> dict[str, object]:
    quiet = {"error": ("warning", "info"), "warning": ("info",), "info": (), "verbose": ()}
    options: dict[str, object] = {f"log-{name}": "false" for name in quiet[level]}
    if level == "verbose":
        options["log-verbose"] = 1
    return options
