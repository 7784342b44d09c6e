"""A /proc of plain files, for functions that take its root as an argument."""

from __future__ import annotations

from pathlib import Path


def add_process(
    proc: Path,
    pid: int,
    *,
    parent: int = 1,
    state: str = "S",
    name: str = "python3",
    arguments: tuple[str, ...] = (),
    maps: str = "",
) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} ({name}) {state} {parent} {pid} {pid} 0", encoding="utf-8")
    (folder / "cmdline").write_bytes(b"\0".join(each.encode() for each in arguments) + b"\0")
    (folder / "maps").write_text(maps, encoding="utf-8")
