"""The public surface."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata, resources
from types import ModuleType

import octavo_client


def test_exported_names_are_all_that_is_visible() -> None:
    visible = {
        name
        for name, value in vars(octavo_client).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }

    assert octavo_client.__all__ == sorted(visible | {"__version__"})


def test_public_names_are_documented() -> None:
    for name in octavo_client.__all__:
        if name != "__version__":
            assert getattr(octavo_client, name).__doc__, name


def test_package_is_typed_and_its_version_is_the_distributions() -> None:
    assert resources.files("octavo_client").joinpath("py.typed").is_file()
    assert octavo_client.__version__ == metadata.version("octavo-client")


def test_client_needs_neither_torch_nor_the_backend() -> None:
    code = "import sys, octavo_client.cli; print({'torch', 'octavo'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
