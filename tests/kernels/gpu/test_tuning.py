"""The choice of tile sizes, with a clock of the test's own."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import triton
from triton.runtime.errors import OutOfResources

from octavo.kernels.gpu import tuning
from octavo.kernels.gpu.tuning import Config, Tuner

CONFIGS = [dict(BLOCK_N=size, num_warps=4) for size in (32, 64, 128)]


class Clock:
    """Launches take as long as `of` says for each BLOCK_N, or do not fit where it says nothing."""

    def __init__(self, of: dict[int, float]) -> None:
        self.of = of
        self.launched: list[Config] = []

    def launch(self, config: Config) -> None:
        if config["BLOCK_N"] not in self.of:
            raise OutOfResources(300_000, 232_448, "shared memory")
        self.launched.append(config)

    def seconds(self, run: Callable[[], object]) -> float:
        run()
        return self.of[self.launched[-1]["BLOCK_N"]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "kernel.py"
    path.write_text("a kernel")
    return path


def tuner(folder: Path, clock: Clock, device: str = "NVIDIA H100 80GB HBM3") -> Tuner:
    tuning._digest_of.cache_clear()  # as another process would read the kernel's text
    return Tuner(folder, device, clock.seconds)


def choose(own: Tuner, clock: Clock, source: Path, key: str = "4096x4096") -> int:
    config = own.choose("linear4", key, CONFIGS, clock.launch, source=str(source))
    return config["BLOCK_N"]


def test_the_fastest_is_chosen_once(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock({32: 3e-6, 64: 8.1e-5, 128: 2e-4})
    for fastest in (32, 64, 128):
        clock.of[fastest] /= 1000
        assert choose(tuner(tmp_path / str(fastest), clock), clock, source) == fastest
        clock.of[fastest] *= 1000
    clock.launched.clear()
    own = tuner(tmp_path / "cache", clock)
    with caplog.at_level(logging.INFO):
        own.choose("linear4", "a", CONFIGS, clock.launch, source=str(source), num_bytes=6_000_000)
        own.choose("linear4", "a", CONFIGS, clock.launch, source=str(source), num_bytes=6_000_000)
    assert clock.launched == CONFIGS
    assert caplog.messages == [
        "tuned linear4 a: BLOCK_N 32, num_warps 4; 3 us, 2.00 TB/s of bytes"
    ]  # fmt: skip
    assert choose(own, clock, source, "another shape") == 32
    assert len(clock.launched) == 6


def test_of_equal_ones_the_first(tmp_path: Path, source: Path) -> None:
    clock = Clock({32: 1e-3, 64: 1e-4, 128: 1e-4})
    assert choose(tuner(tmp_path, clock), clock, source) == 64


def test_what_does_not_fit_the_device_is_passed_over(tmp_path: Path, source: Path) -> None:
    clock = Clock({64: 1e-3})
    assert choose(tuner(tmp_path, clock), clock, source) == 64
    clock = Clock({})
    with pytest.raises(OutOfResources):
        choose(tuner(tmp_path, clock), clock, source, "none fits")


def test_the_next_process_reads_it(tmp_path: Path, source: Path) -> None:
    first = Clock({32: 3.0, 64: 1.0, 128: 2.0})
    choose(tuner(tmp_path, first), first, source)
    clock = Clock({32: 1.0, 64: 3.0, 128: 3.0})
    assert choose(tuner(tmp_path, clock), clock, source) == 64 and not clock.launched
    assert choose(tuner(tmp_path, clock), clock, source, "a new shape") == 32
    both = tuner(tmp_path, Clock({}))
    assert [choose(both, clock, source, key) for key in ("4096x4096", "a new shape")] == [64, 32]
    files = list(tmp_path.glob("linear4-*"))
    assert len(files) == 1, "one for the kernel; nothing is left of writing it"
    content = json.loads(files[0].read_text())
    assert content["device"] == "NVIDIA H100 80GB HBM3"
    assert content["triton"] == triton.__version__


def test_two_processes_keep_each_others_choices(tmp_path: Path, source: Path) -> None:
    clock = Clock({32: 3.0, 64: 1.0, 128: 2.0})
    mine, theirs = (tuner(tmp_path, clock) for _ in range(2))
    for own, key in ((mine, "a"), (theirs, "b"), (mine, "c")):
        choose(own, clock, source, key)
    clock.launched.clear()
    for key in "abc":
        choose(tuner(tmp_path, clock), clock, source, key)
    assert not clock.launched


def test_another_kernel_or_device_is_timed_anew(tmp_path: Path, source: Path) -> None:
    first = Clock({32: 3.0, 64: 1.0, 128: 2.0})
    choose(tuner(tmp_path, first), first, source)
    clock = Clock({32: 1.0, 64: 3.0, 128: 3.0})
    assert choose(tuner(tmp_path, clock, "NVIDIA A100"), clock, source) == 32
    source.write_text("a better kernel")
    assert choose(tuner(tmp_path, clock), clock, source) == 32
    source.write_text("a kernel")
    assert choose(tuner(tmp_path, clock), clock, source) == 64


def test_a_config_that_is_no_more_is_timed_anew(tmp_path: Path, source: Path) -> None:
    clock = Clock({32: 3.0, 64: 1.0, 128: 2.0})
    choose(tuner(tmp_path, clock), clock, source)
    config = tuner(tmp_path, clock).choose(
        "linear4", "4096x4096", CONFIGS[::2], clock.launch, source=str(source)
    )
    assert config["BLOCK_N"] == 128


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", "{}", '{"choices": 3}', '{"device": "another", "choices": {}}',
     '{"choices": {"4096x4096": {"BLOCK_N": "64"}}}', b"\xff\xfe"],
)  # fmt: skip
def test_a_bad_file_is_ignored_with_one_warning(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture, text: str | bytes
) -> None:
    clock = Clock({32: 3.0, 64: 1.0, 128: 2.0})
    choose(tuner(tmp_path, clock), clock, source)
    (path,) = tmp_path.glob("linear4-*")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    own = tuner(tmp_path, clock)
    clock.launched.clear()
    assert choose(own, clock, source) == 64 and len(clock.launched) == 3
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    caplog.clear()
    assert choose(tuner(tmp_path, clock), clock, source) == 64 and len(clock.launched) == 3
    assert not caplog.records


def test_values_that_no_config_has(tmp_path: Path, source: Path) -> None:
    clock = Clock({32: 3.0, 64: 1.0, 128: 2.0})
    choose(tuner(tmp_path, clock), clock, source)
    (path,) = tmp_path.glob("linear4-*")
    content = json.loads(path.read_text())
    for bad in ({"BLOCK_N": "64"}, {"BLOCK_N": 77}, "64", None):
        path.write_text(json.dumps({**content, "choices": {"4096x4096": bad}}))
        assert choose(tuner(tmp_path, clock), clock, source) == 64


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    clock = Clock({32: 3.0, 64: 1.0, 128: 2.0})
    own = tuner(tmp_path / "file" / "folder", clock)
    assert [choose(own, clock, source) for _ in range(2)] == [64, 64]
    assert len(clock.launched) == 3
    assert "cannot be written" in caplog.text


def test_readers_see_a_whole_file_or_none(tmp_path: Path, source: Path) -> None:
    path, header = tmp_path / "linear4.json", {"device": "H100"}
    choices = {f"shape {index}": dict(BLOCK_N=index) for index in range(500)}
    done = threading.Event()

    def write() -> None:
        for _ in range(40):
            tuning._write(path, {**header, "choices": choices})
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert len(tuning._read(path, header)) in (0, 500)
    writer.join()
    assert tuning._read(path, header) == choices


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's are timed")
def test_without_a_gpu_it_is_the_first(source: Path) -> None:
    clock = Clock({})
    assert tuning.choose("linear4", "a", CONFIGS, clock.launch, source=str(source)) == CONFIGS[0]
    assert not clock.launched


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tmp_path: Path, source: Path) -> None:
    """The smaller of two sums is faster, by the device's own clock; none while it captures."""
    sizes = [dict(BLOCK_N=size) for size in (2**28, 2**20)]
    data = torch.zeros(2**28, device="cuda")

    def run(config: Config) -> None:
        data[: config["BLOCK_N"]].sum()

    tuning.set_cache(tmp_path)
    assert tuning.choose("sum", "a", sizes, run, source=str(source)) == sizes[1]
    assert list(tmp_path.glob("sum-*"))
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        assert tuning.choose("sum", "a", sizes, run, source=str(source)) == sizes[1]
        with pytest.raises(AssertionError, match="before a capture"):
            tuning.choose("sum", "b", sizes, run, source=str(source))


def test_its_folder_is_that_of_the_other_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_folder", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning._tuner.cache_clear()
    assert tuning._tuner("a device")._folder == tmp_path / "octavo" / "kernels"
    tuning.set_cache(tmp_path / "another")
    assert tuning._tuner("a device")._folder == tmp_path / "another"
    tuning._tuner.cache_clear()


def test_importing_needs_no_gpu_and_no_compiler() -> None:
    code = "import octavo.kernels, sys; sys.exit('triton' in sys.modules)"
    path = str(Path(tuning.__file__).parents[3])
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}).returncode == 0
