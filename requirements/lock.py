"""Writes constraints.txt: one version of every package for each Python that Octavo runs on.

    python requirements/lock.py python3.10 python3.11 python3.12

Each interpreter resolves dev.txt, and so all that it includes, afresh; where they come to
different versions, the line carries a marker. What torch pins by itself (its CUDA packages) is
left to torch.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
INPUTS = ("runtime.txt", "loadtest.txt", "dev.txt")
LEFT_TO_TORCH = re.compile(r"(nvidia|cuda)-.*|triton")


def main(interpreters: list[str]) -> None:
    pins: dict[str, dict[str, str]] = defaultdict(dict)
    for interpreter in interpreters:
        version = python_version(interpreter)
        for name, pin in resolve(interpreter).items():
            pins[name][version] = pin
    versions = [python_version(interpreter) for interpreter in interpreters]
    lines = [line for name in sorted(pins) for line in pin_lines(name, pins[name], versions)]
    header = f"# Written by `make lock` for Python {', '.join(versions)}.\n"
    (HERE / "constraints.txt").write_text(header + "\n".join(lines) + "\n", encoding="utf-8")


def pin_lines(name: str, by_version: dict[str, str], versions: list[str]) -> list[str]:
    if len(set(by_version.values())) == 1 and len(by_version) == len(versions):
        return [f"{name}=={by_version[versions[0]]}"]
    return [f'{name}=={pin}; python_version == "{version}"' for version, pin in by_version.items()]


def resolve(interpreter: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in INPUTS:  # without the constraints that are to be renewed
            text = (HERE / name).read_text(encoding="utf-8")
            (place / name).write_text(re.sub(r"(?m)^-c .*$", "", text), encoding="utf-8")
        subprocess.run([interpreter, "-m", "venv", place / "venv"], check=True)
        command = [place / "venv/bin/pip", "install", "--quiet", "--dry-run"]
        command += ["--report", place / "report.json", "-r", place / INPUTS[-1]]
        subprocess.run(command, check=True)
        report = json.loads((place / "report.json").read_text(encoding="utf-8"))
    found = (item["metadata"] for item in report["install"])
    return {
        name: item["version"].partition("+")[0]
        for item in found
        if not LEFT_TO_TORCH.fullmatch(name := item["name"].lower().replace("_", "-"))
    }


def python_version(interpreter: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run(
        [interpreter, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":
    main(sys.argv[1:])
