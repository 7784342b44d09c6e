"""Wrong usage of `octavo gate`. Its exit code is not typer's 2, which is a verdict here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand

EXIT_NOT_MEASURED = 4

# Of click or, from typer 0.26 on, of the copy of it in typer.
_UsageError: Any = typer.BadParameter.__mro__[1]


class GateCommand(TyperCommand):
    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _as_not_measured():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _as_not_measured():
            return super().invoke(ctx)


@contextmanager
def _as_not_measured() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        error.exit_code = EXIT_NOT_MEASURED
        raise
