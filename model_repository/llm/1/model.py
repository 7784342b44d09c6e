"""Triton's entry; the server is octavo.serving.server."""

import locale

# The stub starts with ASCII as its text encoding, whatever the environment says; libraries
# that open files without naming one then fail on the first other character.
locale.setlocale(locale.LC_ALL, "C.UTF-8")

from octavo.serving.server import OctavoModel as TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
