"""What /proc tells about processes: children, command lines, shared mappings, listening ports.

Every function takes the root of /proc as an argument, so a test can hand it a folder of files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"  # the state column of /proc/net/tcp


def process_ids(proc: Path = PROC) -> Iterator[int]:
    for entry in proc.iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def is_alive(pid: int, proc: Path = PROC) -> bool:
    """False for a zombie too: its memory is gone, only its parent has not asked yet."""
    fields = _stat_fields(pid, proc)
    return bool(fields) and fields[0] not in ("Z", "X")


def command_line(pid: int, proc: Path = PROC) -> str:
    try:
        raw = (proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def children(pid: int, proc: Path = PROC) -> list[int]:
    def parent_of(child: int) -> int:
        fields = _stat_fields(child, proc)
        return int(fields[1]) if fields else 0

    return [child for child in process_ids(proc) if parent_of(child) == pid]


def with_argument(text: str, proc: Path = PROC) -> list[int]:
    """Living processes whose command line holds `text`, this one excepted."""
    return [
        pid
        for pid in process_ids(proc)
        if pid != os.getpid() and text in command_line(pid, proc) and is_alive(pid, proc)
    ]


def mapped_file_names(proc: Path = PROC) -> set[str]:
    """Names (without folder) of all files that some process maps.

    By name, because the folder part differs between mount namespaces.
    """
    names: set[str] = set()
    for pid in process_ids(proc):
        try:
            maps = (proc / str(pid) / "maps").read_text(encoding="utf-8", errors="replace")
        except OSError:  # gone meanwhile, or another user's: such a one cannot map our files
            continue
        for line in maps.splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith("/"):
                names.add(fields[5].removesuffix(" (deleted)").rpartition("/")[2])
    return names


def listener(port: int, proc: Path = PROC) -> int | None:
    """The process that listens on a TCP port, if it can be known."""
    inodes = _listening_inodes(port, proc)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in process_ids(proc):
        try:
            for descriptor in (proc / str(pid) / "fd").iterdir():
                if os.readlink(descriptor) in wanted:
                    return pid
        except OSError:
            continue
    return None


def _listening_inodes(port: int, proc: Path) -> set[str]:
    inodes: set[str] = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes


def _stat_fields(pid: int, proc: Path) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the name before it may hold spaces."""
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
