"""Where things lie: the checkout, and this user's cache."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "octavo"


def project_root() -> Path:
    """The checkout this package was installed from, else the current folder."""
    checkout = Path(__file__).resolve().parents[3]
    return checkout if (checkout / "model_repository").is_dir() else Path.cwd()


def default_repository() -> Path:
    return project_root() / "model_repository"


def default_model() -> Path:
    return project_root() / "models" / "octavo-tiny"
