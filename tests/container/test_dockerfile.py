from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.container.dockerfile import ROOT, defaults, lineage, stages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SERVERS = pytest.mark.parametrize("target", ["cpu", "gpu"])


def requirements(file: str) -> dict[str, str]:
    """Name -> the rest of its line."""
    lines = (ROOT / "requirements" / file).read_text("utf-8").splitlines()
    return {
        match[1]: match[2].partition("#")[0].strip()
        for line in lines
        if (match := re.match(r"([A-Za-z][\w.-]*)(.*)", line))
    }


def sources() -> set[str]:
    """Of every COPY from the build context."""
    found = set()
    for stage in stages().values():
        for text in stage.arguments("COPY"):
            if not text.startswith("--from"):
                found.update(text.split()[:-1])
    return found


def test_everything_copied_exists() -> None:
    assert len(sources()) >= 7
    for source in sources():
        assert (ROOT / source).exists(), source


def test_build_context_has_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    used = {
        next((each for each in allowed if Path(source).is_relative_to(each)), source)
        for source in sources()
    }
    assert used == allowed


def test_copies_between_stages_name_stages() -> None:
    for stage in stages().values():
        for text in stage.arguments("COPY"):
            if match := re.match(r"--from=(\S+)", text):
                assert match[1] in stages()


@SERVERS
def test_server_runs_as_no_root_and_becomes_tritonserver(target: str) -> None:
    chain = lineage(target)
    assert chain[0].arguments("USER") == ["triton-server"]
    assert [name for name, _ in chain[0].instructions][-1] == "USER"
    (command,) = [text for stage in chain for text in stage.arguments("CMD")]
    assert json.loads(command) == ["octavo", "exec-server"]
    # NVIDIA's entrypoint stays.
    assert not any(stage.arguments("ENTRYPOINT") for stage in chain)


@SERVERS
def test_build_holds_our_flags_against_the_images_binary(target: str) -> None:
    assert "octavo exec-server --check" in stages()[target].arguments("RUN")


def test_cpu_and_gpu_differ_in_the_index_of_torch_and_a_c_compiler() -> None:
    def spelt(target: str) -> list[tuple[str, str]]:
        own = stages()[target].instructions
        return [
            (name, text.replace(f"TORCH_INDEX_{target.upper()}", "INDEX")) for name, text in own
        ]

    (compiler,) = [each for each in spelt("gpu") if "gcc" in each[1]]
    assert spelt("cpu") == [each for each in spelt("gpu") if each != compiler]
    assert "python3-dev" in compiler[1], "what it compiles includes Python.h"
    assert defaults()["TORCH_INDEX_CPU"] != defaults()["TORCH_INDEX_GPU"]


def test_torch_is_the_version_that_the_tests_run_with() -> None:
    assert f"=={defaults()['TORCH_VERSION']}" == requirements("constraints.txt")["torch"]


def test_container_installs_the_dependencies_of_the_package() -> None:
    text = (ROOT / "backend" / "pyproject.toml").read_text("utf-8")
    declared = {
        re.split(r"[<>=;]", each)[0] for each in tomllib.loads(text)["project"]["dependencies"]
    }
    # torch comes from an index of its own; Python 3.12 has tomllib.
    assert set(requirements("container.txt")) == declared - {"torch", "tomli"}


def test_all_but_numpy_are_pinned_by_the_constraints() -> None:
    own = requirements("container.txt")
    assert re.fullmatch(r"==2\.\d+\.\d+", own.pop("numpy"))
    assert set(own.values()) == {""}
    assert set(own) <= set(requirements("constraints.txt"))


def test_constraints_of_the_container_leave_numpy_and_torch_to_it() -> None:
    (run,) = [text for text in stages()["environment"].arguments("RUN") if "constraints" in text]
    script = re.match(r"sed -E '([^']+)'", run)
    assert script is not None
    kept = subprocess.run(
        ["sed", "-E", script[1], ROOT / "requirements" / "constraints.txt"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    everything = (ROOT / "requirements" / "constraints.txt").read_text("utf-8").splitlines()
    assert {line.partition("==")[0] for line in set(everything) - set(kept)} == {"numpy", "torch"}


def test_load_generator_has_its_packages_without_torch() -> None:
    (run,) = [text for text in stages()["loadtest"].arguments("RUN") if text.startswith("sed")]
    script = re.match(r"sed '([^']+)'", run)
    assert script is not None
    kept = subprocess.run(
        ["sed", script[1], ROOT / "requirements" / "loadtest.txt"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "locust" in kept
    assert "-r " not in kept


def test_base_images_are_pinned() -> None:
    bases = {stage.base for stage in stages().values()} - set(stages())
    assert bases == {"${TRITON_IMAGE}", "${PYTHON_IMAGE}"}
    assert re.search(r":\d\d\.\d\d-py3$", defaults()["TRITON_IMAGE"])
    assert re.search(r":\d+\.\d+\.\d+-slim-\w+$", defaults()["PYTHON_IMAGE"])


def test_the_image_brings_the_cpu_kernels() -> None:
    """Where octavo.kernels.cpu.build looks first, built from the sources that are installed."""
    assert "g++" in " ".join(stages()["kernels"].arguments("RUN"))
    (copied,) = (t for t in stages()["octavo"].arguments("COPY") if "--from=kernels" in t)
    assert copied.split()[-1].endswith("site-packages/octavo/kernels/cpu/built")
