from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from octavo.cli import checks, doctor
from octavo.cli.ports import Ports
from octavo.cli.server_folder import Wheel, running_python
from octavo.cli.shared_memory import Region

MIB = 2**20


def write_tool(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("version", "state"),
    [((3, 9), "fatal"), ((3, 10), "ok"), ((3, 12), "ok"), ((3, 13), "fatal")],
)
def test_python_is_fatal_where_the_server_has_no_numpy_for_it(
    version: tuple[int, int], state: str
) -> None:
    check = checks.check_python(version)
    # Outside a virtual environment a good version is no more than a warning.
    assert check.state == state or (state == "ok" and sys.prefix == sys.base_prefix)


def test_packages_of_this_environment_suit_the_server() -> None:
    check = checks.check_packages()
    assert check.state == "ok"
    assert "numpy 1.26" in check.detail


@pytest.mark.parametrize(("version", "state"), [("12.2.0", "ok"), ("9.4.0", "warn"), ("", "warn")])
def test_compiler_must_know_the_instructions(tmp_path: Path, version: str, state: str) -> None:
    compiler = write_tool(tmp_path, "g++", f"echo {version}")
    assert checks.check_compiler(str(compiler)).state == state


def test_absent_compiler_is_a_warning_with_a_fix(tmp_path: Path) -> None:
    check = checks.check_compiler(str(tmp_path / "g++"))
    assert (check.state, check.fix) == ("warn", "apt install g++")


@pytest.mark.parametrize(
    ("flags", "state", "detail"),
    [
        ("fpu avx2 avx512f amx_bf16", "ok", "amx_bf16 (bf16 matrix tiles)"),
        ("fpu avx2", "ok", "avx2 (8 floats at once)"),
        ("fpu sse4_2", "warn", "only the portable kernels"),
    ],
    ids=["amx", "avx2", "none"],
)
def test_cpu_features_say_what_they_bring(
    tmp_path: Path, flags: str, state: str, detail: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\nbugs : none\n", encoding="utf-8")
    check = checks.check_cpu(cpuinfo, machine="x86_64")
    assert check.state == state
    assert detail in check.detail


def test_another_architecture_is_fatal(tmp_path: Path) -> None:
    assert checks.check_cpu(tmp_path / "cpuinfo", machine="aarch64").state == "fatal"


@pytest.mark.parametrize(("available_kib", "state"), [(8 * MIB, "ok"), (MIB, "warn")])
def test_memory(tmp_path: Path, available_kib: int, state: str) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 9 kB\nMemAvailable:   {available_kib} kB\n", encoding="utf-8")
    assert checks.check_memory(meminfo).state == state


def test_gpu_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.check_gpu() == checks.Check("GPU", "ok", "none: CPU mode")
    write_tool(tmp_path, "nvidia-smi", "echo 'NVIDIA H200, 143771 MiB, 570.1'")
    assert checks.check_gpu() == checks.Check("GPU", "ok", "NVIDIA H200, 143771 MiB, 570.1")
    write_tool(tmp_path, "nvidia-smi", "exit 9")
    assert checks.check_gpu().state == "warn"


@pytest.mark.parametrize(
    ("version", "state"), [("2.35", "ok"), ("2.40", "ok"), ("2.31", "fatal"), ("", "fatal")]
)
def test_glibc(version: str, state: str) -> None:
    assert checks.check_glibc(version).state == state


@pytest.mark.parametrize(
    ("free_bytes", "state"), [(300 * MIB, "ok"), (100 * MIB, "warn"), (63 * MIB, "fatal")]
)
def test_shared_memory_size(free_bytes: int, state: str) -> None:
    assert checks.judge_shared_memory(Path("/dev/shm"), 300 * MIB, free_bytes).state == state


def test_absent_shared_memory_is_fatal(tmp_path: Path) -> None:
    assert checks.check_shared_memory(tmp_path / "absent").state == "fatal"


def test_wheel_without_a_stub_for_this_python_is_fatal(tmp_path: Path) -> None:
    check = checks.check_stub(Wheel("0.7.0", tmp_path, tmp_path), "3.99")
    assert check.state == "fatal"
    assert "3.99" in check.detail


def test_stub_without_its_libpython_is_fatal(tmp_path: Path) -> None:
    wheel = Wheel("0.7.0", tmp_path, tmp_path)
    wheel.stub("3.99").parent.mkdir(parents=True)
    wheel.stub("3.99").touch()
    check = checks.check_stub(wheel, "3.99")
    assert check.state == "fatal"
    assert check.fix.startswith("apt install libpython3.99")


def test_stub_and_server_of_this_environment_are_found() -> None:
    assert checks.check_stub().state == "ok"
    assert checks.check_server().detail == "Triton 2.51.0 (nvidia-pytriton 0.7.0)"


def test_stale_regions_are_counted_with_their_size() -> None:
    regions = [Region(Path(f"/dev/shm/region_{index}"), 16 * MIB, 60.0) for index in range(3)]
    check = checks.check_stale_regions(regions)
    assert check.state == "warn"
    assert check.detail == "3 of dead servers, 48.0 MiB: region_0, region_1 and 1 more"
    assert check.fix == "octavo doctor --fix"


def test_disk_is_measured_where_the_folder_will_be(tmp_path: Path) -> None:
    assert str(tmp_path) in checks.check_disk(tmp_path / "not" / "yet").detail


def test_examination_covers_every_check_and_goes_to_json() -> None:
    results = doctor.examine(Ports.free())
    assert len({check.name for check in results}) == len(results) == 13
    assert json.loads(doctor.as_json(results))[0]["name"] == "Python"


def test_doctor_fails_only_for_what_is_fatal(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor.run(port=port, host="127.0.0.1", fix=False, json_output=True) == 1
    report = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert f"{port} taken by process {os.getpid()}" in report["ports"]["detail"]
    assert doctor.has_fatal([checks.Check("a", "warn", "")]) is False


def test_table_prints_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    doctor.print_table([checks.Check("ports", "fatal", "by [red]x[/red]", "")], Console())
    assert "[red]x[/red]" in capsys.readouterr().out


def test_doctor_never_needs_a_stub_of_another_python() -> None:
    assert running_python() in checks.check_stub().detail
