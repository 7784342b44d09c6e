"""The records on disk: whole after a kill, merged over processes, never overwritten."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.folders import new_folder
from loadtest.records import Recorder, read
from tests.loadtest.made_up_runs import failed, record

_WRITES_AND_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from loadtest.records import Recorder
from tests.loadtest.made_up_runs import record
recorder = Recorder(Path(sys.argv[1]), 0, {"workers": 1})
for index in range(100):
    recorder.add(record(index))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    written = [record(0, gaps_ms=(1, 2.5, 3)), failed("error", 1), record(2, cached_tokens=16)]
    recorder = Recorder(tmp_path, 0, {"worker": 0, "workers": 1})
    for each in written:
        recorder.add(each)
    recorder.end({"cpu_ratio": 0.1})

    (file,) = read(tmp_path)

    assert file.records == written
    assert file.header == {"worker": 0, "workers": 1}
    assert file.end == {"cpu_ratio": 0.1}


def test_a_kill_loses_nothing_that_had_ended(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", _WRITES_AND_IS_KILLED, str(tmp_path)], timeout=60
    )
    assert process.returncode == -signal.SIGKILL

    (file,) = read(tmp_path)

    assert [r.index for r in file.records] == list(range(100))
    assert file.end is None


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0, {"workers": 1})
    recorder.add(record(0))
    recorder.add(record(1))
    recorder.path.write_bytes(recorder.path.read_bytes()[:-20])

    (file,) = read(tmp_path)

    assert [r.index for r in file.records] == [0]


def test_files_of_many_processes_are_ordered_by_number(tmp_path: Path) -> None:
    for worker in (10, 2, 0):
        Recorder(tmp_path, worker, {"worker": worker}).end({})
    assert [file.header["worker"] for file in read(tmp_path)] == [0, 2, 10]


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    Recorder(tmp_path / "run", 0, {})
    with pytest.raises(FileExistsError):
        Recorder(tmp_path / "run", 0, {})
    assert new_folder(str(tmp_path / "run"), "chat") == tmp_path / "run-2"
    assert new_folder(str(tmp_path / "new"), "chat") == tmp_path / "new"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type":"run"}\n{"type":"request","index":0}\n', "line 2: not a record"),
        ('{"type":"run"}\nnonsense\n', "line 2: not a record"),
        ('{"type":"end"}\n', "has no header"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "requests-0.jsonl").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=f"requests-0.jsonl.*{message}"):
        read(tmp_path)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no requests"):
        read(tmp_path)
