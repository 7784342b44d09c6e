"""From the options of `octavo serve` to the settings of a server."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from octavo.cli.checkpoint import resolve
from octavo.cli.paths import default_model, default_repository
from octavo.cli.ports import Ports
from octavo.cli.server_settings import Contract, LogLevel, ServerSettings, engine_environment
from octavo.config import load_config
from octavo.errors import ConfigError

_FIELD = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeArguments:
    """As typed: None where nothing was said."""

    model: str | None = None
    port: int = 8000
    http_port: int | None = None
    grpc_port: int | None = None
    metrics_port: int | None = None
    host: str = "127.0.0.1"
    engine: Mapping[str, object] = field(default_factory=dict)
    assignments: Sequence[str] = ()
    contract: Contract = "batched"
    repository: Path | None = None
    server_dir: Path | None = None
    log_level: LogLevel = "info"
    log_file: Path | None = None
    ready_timeout_s: float = 180.0
    drain_timeout_s: float = 30.0


def server_settings(arguments: ServeArguments) -> ServerSettings:
    """Raises ConfigError or CheckpointError. Fetches the checkpoint if it is on the hub."""
    repository = arguments.repository or default_repository()
    if not repository.is_dir():
        raise ConfigError(f"repository {repository}: no such folder")
    overrides = engine_overrides(arguments.engine, arguments.assignments)
    settings = ServerSettings(
        repository=repository,
        model=resolve(arguments.model or str(default_model())),
        contract=arguments.contract,
        engine_overrides=overrides,
        host=arguments.host,
        ports=chosen_ports(arguments),
        log_file=arguments.log_file,
        log_level=arguments.log_level,
        ready_timeout_s=arguments.ready_timeout_s,
        drain_timeout_s=arguments.drain_timeout_s,
        server_dir=arguments.server_dir,
    )
    _check_engine_settings(settings)
    return settings


def chosen_ports(arguments: ServeArguments) -> Ports:
    if not 0 < arguments.port < 65534:
        raise ConfigError(f"port: {arguments.port} is outside 1 to 65533")
    row = Ports.starting_at(arguments.port)
    try:
        return Ports(
            http=arguments.http_port or row.http,
            grpc=arguments.grpc_port or row.grpc,
            metrics=arguments.metrics_port or row.metrics,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def engine_overrides(named: Mapping[str, object], assignments: Sequence[str]) -> dict[str, str]:
    """Fields of EngineConfig as text, from options of their own and from --set FIELD=VALUE."""
    overrides = {name: str(value) for name, value in named.items() if value is not None}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not _FIELD.fullmatch(name):
            raise ConfigError(f"--set {assignment}: not of the form field=value")
        if name in overrides:
            raise ConfigError(f"--set {assignment}: {name} is given twice")
        overrides[name] = value
    return overrides


def _check_engine_settings(settings: ServerSettings) -> None:
    """Here and now: the server would say the same half a minute later, and in its log."""
    toml = settings.repository / settings.model_name / "1" / "engine.toml"
    if toml.is_file():
        load_config(toml, {**os.environ, **engine_environment(settings)})
