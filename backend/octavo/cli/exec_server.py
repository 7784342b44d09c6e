"""`octavo exec-server`: this process becomes the tritonserver of the container.

There the server and its Python backend are installed already, a restart policy watches over it,
and shared memory ends with the container: nothing is left for a launcher to do. Signals reach
tritonserver itself, which then drains.
"""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from octavo.cli.arguments import ServeArguments, server_settings
from octavo.cli.server_folder import ServerFolder
from octavo.cli.server_settings import has_gpu, server_command, server_environment
from octavo.cli.triton_flags import flags_in, flags_in_help
from octavo.errors import ConfigError, OctavoError

_TRITON = Path("/opt/tritonserver")  # in NVIDIA's images


def run(
    arguments: ServeArguments,
    triton_version: str,
    *,
    show: bool = False,
    check: bool = False,
    triton: Path = _TRITON,
) -> int:
    """The exit code; does not return when the server takes over."""
    folder = ServerFolder(
        version=triton_version,
        binary=triton / "bin" / "tritonserver",
        backends=triton / "backends",
        library_path=(),
    )
    try:
        settings = server_settings(arguments)
        key = "<random>" if show else secrets.token_hex(16)
        command = server_command(settings, folder, closed_key=key, gpu=has_gpu())
        if show:
            print(shlex.join(command))
        elif check:
            check_flags(command)
        else:
            print(f"octavo: Triton {triton_version} with {settings.model}", file=sys.stderr)
            become(command, server_environment(settings, folder))
    except OctavoError as error:
        print(f"octavo: {error}", file=sys.stderr)
        return 1
    return 0


def become(command: list[str], environment: Mapping[str, str]) -> None:
    """Returns only by a ConfigError."""
    sys.stderr.flush()
    try:
        os.execve(command[0], command, environment)
    except OSError as error:
        raise ConfigError(f"{command[0]}: {error.strerror}") from None


def check_flags(command: list[str]) -> None:
    """Raises ConfigError for a flag that the binary itself does not list."""
    try:
        answer = subprocess.run([command[0], "--help"], capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(f"{command[0]}: {error.strerror}") from None
    unknown = flags_in(command[1:]) - flags_in_help(answer.stdout + answer.stderr)
    if unknown:
        names = ", ".join(f"--{flag}" for flag in sorted(unknown))
        raise ConfigError(f"{command[0]} --help does not list {names}")
