"""Where a run's records and report go."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path


def new_folder(wanted: str, workload: str) -> Path:
    """`wanted`, or a new one named after time and workload. One that holds a run already gets a
    number behind its name, so that no run is overwritten."""
    stamp = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H-%M-%SZ")
    folder = Path(wanted) if wanted else Path("loadtest-results") / f"{stamp}-{workload}"
    base, number = folder, 1
    while any(folder.glob("requests-*.jsonl")):
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()
