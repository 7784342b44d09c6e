"""What measured, for the report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("locust", "gevent", "grpcio", "tritonclient", "octavo"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a container of the load generator alone has no octavo
            continue
    return found
