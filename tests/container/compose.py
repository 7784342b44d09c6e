"""docker-compose.yml as data, with variables put in as Compose does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
EXAMPLE = ROOT / ".env.example"
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def variables() -> dict[str, str]:
    """Names in docker-compose.yml and their defaults."""
    found: dict[str, str] = {}
    for name, default in _VARIABLE.findall(FILE.read_text("utf-8")):
        assert found.setdefault(name, default) == default, f"{name} has two defaults"
    return found


def example() -> dict[str, str]:
    """What .env.example shows."""
    lines = EXAMPLE.read_text("utf-8").splitlines()
    return dict(line[1:].split("=", 1) for line in lines if re.match(r"#\w+=", line))


def load(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    chosen = {**variables(), **(environment or {})}
    text = _VARIABLE.sub(lambda match: chosen[match[1]], FILE.read_text("utf-8"))
    assert "${" not in text, "a variable without a default"
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def started(*profiles: str) -> set[str]:
    """Services that `docker compose --profile ... up` starts."""
    services = load()["services"]
    return {
        name
        for name, service in services.items()
        if not service.get("profiles") or set(service["profiles"]) & set(profiles)
    }


def engines() -> dict[str, dict[str, Any]]:
    services = load()["services"]
    return {name: services[name] for name in ("octavo-cpu", "octavo-gpu")}


def binds(service: Mapping[str, Any]) -> Iterator[tuple[Path, str, bool]]:
    """Path on the host, path in the container, whether it is read-only."""
    for volume in service.get("volumes", ()):
        if isinstance(volume, str):
            source, target, *mode = volume.split(":")
            if source.startswith("."):
                yield ROOT / source, target, mode == ["ro"]
        elif volume["type"] == "bind":
            yield ROOT / volume["source"], volume["target"], volume.get("read_only", False)


def on_host(service: Mapping[str, Any], path: str) -> Path:
    """Where a file that the container sees lies in this repository."""
    for source, target, _ in binds(service):
        if Path(path).is_relative_to(target):
            return source / Path(path).relative_to(target)
    raise AssertionError(f"{path} is not mounted")


def seconds(duration: str) -> int:
    assert duration.endswith("s")
    return int(duration.removesuffix("s"))
