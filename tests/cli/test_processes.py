from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from octavo.cli import processes
from tests.cli.fake_proc import add_process


def test_children_are_found_by_their_parent_whatever_their_name(tmp_path: Path) -> None:
    add_process(tmp_path, 10)
    add_process(tmp_path, 11, parent=10, name="a (b) c")
    add_process(tmp_path, 12, parent=11)
    (tmp_path / "self").mkdir()
    assert processes.children(10, tmp_path) == [11]


def test_zombie_and_absent_processes_are_not_alive(tmp_path: Path) -> None:
    add_process(tmp_path, 10, state="S")
    add_process(tmp_path, 11, state="Z")
    alive = [processes.is_alive(pid, tmp_path) for pid in (10, 11, 12)]
    assert alive == [True, False, False]


def test_unreaped_child_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, but not reaped
    assert not processes.is_alive(child.pid)
    child.wait()


def test_with_argument_leaves_out_zombies_and_others(tmp_path: Path) -> None:
    add_process(tmp_path, 10, arguments=("stub", "octavo_shm_1_2_ab_uuid"))
    add_process(tmp_path, 11, arguments=("stub", "octavo_shm_1_2_ab_uuid"), state="Z")
    add_process(tmp_path, 12, arguments=("stub", "octavo_shm_1_3_cd_uuid"))
    assert processes.with_argument("octavo_shm_1_2_ab_", tmp_path) == [10]


def test_mapped_file_names_drop_folders_anonymous_maps_and_deletion_marks(tmp_path: Path) -> None:
    add_process(
        tmp_path,
        10,
        maps="7f00-7f01 rw-s 00000000 00:1b 102    /dev/shm/one region\n"
        "7f01-7f02 rw-s 00000000 00:1b 103    /dev/shm/two (deleted)\n"
        "7f02-7f03 rw-p 00000000 00:00 0      [heap]\n"
        "7f03-7f04 rw-p 00000000 00:00 0\n",
    )
    add_process(tmp_path, 11)
    (tmp_path / "11" / "maps").unlink()
    assert processes.mapped_file_names(tmp_path) == {"one region", "two"}


def test_listener_names_the_process_that_holds_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert processes.listener(server.getsockname()[1]) == os.getpid()


def test_listener_is_none_for_a_free_port() -> None:
    with socket.socket() as bound:  # bound, but not listening
        bound.bind(("127.0.0.1", 0))
        assert processes.listener(bound.getsockname()[1]) is None
