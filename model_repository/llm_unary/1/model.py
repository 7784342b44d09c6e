"""Triton's entry; the model is octavo.serving.unary."""

import locale

# See llm/1/model.py.
locale.setlocale(locale.LC_ALL, "C.UTF-8")

from octavo.serving.unary import UnaryModel as TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
