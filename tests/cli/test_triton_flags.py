from __future__ import annotations

import os
import subprocess

import pytest

from octavo.cli.server_folder import find_wheel
from octavo.cli.triton_flags import CONTAINER_VERSION, FLAGS, flags_in, flags_in_help


def test_row_of_the_embedded_server_is_what_its_help_prints() -> None:
    wheel = find_wheel()
    answer = subprocess.run(
        [wheel.dist / "bin" / "tritonserver", "--help"],
        env={**os.environ, "LD_LIBRARY_PATH": str(wheel.libraries)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert flags_in_help(answer.stdout + answer.stderr) == FLAGS[wheel.triton_version]


def test_container_has_what_the_embedded_server_has_but_for_deprecated_flags() -> None:
    gone = FLAGS["2.51.0"] - FLAGS[CONTAINER_VERSION]
    assert gone == {
        "strict-model-config",
        "response-cache-byte-size",
        "trace-file",
        "trace-level",
        "trace-rate",
        "trace-count",
        "trace-log-frequency",
    }


@pytest.mark.parametrize(
    ("argument", "flag"),
    [("--help", "help"), ("--id=a=b", "id"), ("--backend-config=python,a=b", "backend-config")],
)
def test_flag_of_an_argument(argument: str, flag: str) -> None:
    assert flags_in([argument]) == {flag}
